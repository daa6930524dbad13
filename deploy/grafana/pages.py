"""The pages of the documentation about dashboards: ``python -m deploy.grafana`` writes them, too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any


def _row(panel: Any) -> str:
    asks = "<br>".join(f"`{target['expr']}`".replace("|", "\\|") for target in panel["targets"])
    about = panel.get("description", "").replace("|", "\\|")
    return f"| {panel['title']} | {about} | {asks} |"


def _page(found: Any) -> Iterator[str]:
    uid, choices = found["uid"], [one for one in found["templating"]["list"] if one["type"] == "query"]
    yield f"# Dashboard: {found['title'].removeprefix('NovaCron: ')}\n"
    yield f"{found['description']} In Grafana: `/d/{uid}`.\n"
    if choices:
        yield f"One can choose: {', '.join(one['label'] for one in choices)}; all of them unless some are chosen.\n"
    yield f"![{found['title']}](../images/{uid}.svg)\n"
    head = ["| panel | what it shows | what it asks |", "|---|---|---|"]
    lines = [*head]
    for panel in found["panels"]:
        if panel["type"] == "row":
            yield "\n".join(lines) + "\n"
            yield f"## {panel['title']}\n"
            lines = [*head]
        else:
            lines.append(_row(panel))
    yield "\n".join(lines) + "\n"


def _index(boards: list[Any]) -> str:
    lines = [
        "# Dashboards",
        "",
        "Seven, made by `python -m deploy.grafana`, each linked to the others; every ten seconds they are drawn anew.",
        "Marks show when servers and agents were started (deployments), and migrations. A test asks every query of every",
        "panel on a platform that runs (`tests/integration/test_dashboards.py`). The pictures are drawn from what a real",
        "Prometheus said, by `python -m lab.pictures`; Grafana's own look better. To install them:",
        "[how to observe](../how-to/observe.md#grafana).",
        "",
        "| dashboard | what for |",
        "|---|---|",
    ]
    for found in boards:
        lines.append(f"| [{found['title'].removeprefix('NovaCron: ')}]({found['uid']}.md) | {found['description']} |")
    return "\n".join(lines) + "\n"


def pages(dashboards: dict[str, str]) -> dict[str, str]:
    """Return each page by its file's name. ``dashboards``: the JSON of each, by its file's name."""
    boards = [json.loads(text) for text in dashboards.values()]
    return {"README.md": _index(boards), **{f"{found['uid']}.md": "\n".join(_page(found)) for found in boards}}
