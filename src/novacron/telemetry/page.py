"""Writes the page of all metrics: ``python -m novacron.telemetry.page > docs/reference/metrics.md``."""

from __future__ import annotations

from novacron.telemetry import declared
from novacron.telemetry.declared import Family, Together

GROUPS: dict[str, tuple[Family, ...]] = {
    "The API": declared.API,
    "The change feed, and what is held in memory": declared.FEED,
    "The database": declared.DATABASE,
    "Controllers": declared.CONTROLLERS,
    "Audit log": declared.AUDIT,
    "The link to nodes": declared.LINK,
    "Migrations and DWCP": declared.MIGRATIONS,
    "The fleet": declared.FLEET,
    "Forecasts": declared.FORECASTS,
    "Processes: of servers and of agents": declared.PROCESS,
    "Agents": declared.AGENT,
    "Nodes, as machines": declared.HOST,
    "VMs, where they run": declared.VM,
    "Rollouts: in the file that `novacron rollout start --textfile` names": declared.ROLLOUTS,
}
TOGETHER = {
    Together.SUM: "sum",
    Together.MAX: "the largest",
    Together.SEEN: "each sees all",
}


def page() -> str:
    """Return the page, in Markdown."""
    lines = [
        "# Reference: metrics",
        "",
        f"{len(declared.FAMILIES)} metrics, made from `telemetry/declared.py` with",
        "`python -m novacron.telemetry.page`.",
        "A server says its own at `/metrics`, and those of each agent that is connected to it, with its VMs, at",
        "`/api/v1/nodes/NODE/metrics`; `/metrics/targets` lists these for Prometheus (HTTP service discovery).",
        "The processes of one server (`--workers`) are put together as the last column says; of several servers, sum",
        "what is summed here, and take the largest of what each sees, or counts for itself: migrations.",
        "Who accepts OpenMetrics gets exemplars with durations: the trace of something that took so long.",
    ]
    for title, families in GROUPS.items():
        lines += ["", f"## {title}", ""]
        lines += ["| metric | kind | labels | what it means | processes |", "|---|---|---|---|---|"]
        for family in families:
            labels = ", ".join(f"`{label}`" for label in family.labels)
            lines.append(
                f"| `{family.name}` | {family.kind} | {labels} | {family.help} | {TOGETHER[family.together]} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
