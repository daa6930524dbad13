"""Write every dashboard as Grafana's JSON, and its documentation page."""

from __future__ import annotations

from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana.api import api
from deploy.grafana.database import database
from deploy.grafana.dwcp import dwcp
from deploy.grafana.nodes import nodes
from deploy.grafana.overview import overview
from deploy.grafana.pages import pages
from deploy.grafana.slo import slo
from deploy.grafana.vms import vms

DASHBOARDS = {
    "novacron-overview": overview,
    "novacron-api": api,
    "novacron-database": database,
    "novacron-dwcp": dwcp,
    "novacron-vms": vms,
    "novacron-nodes": nodes,
    "novacron-slo": slo,
}
DIRECTORY = Path(__file__).parent / "dashboards"
PAGES = Path(__file__).parents[2] / "docs/dashboards"


def written() -> dict[str, str]:
    """Return what each file is to hold, by its name."""
    encode = JSONEncoder(sort_keys=True, indent=1).encode
    return {f"{uid}.json": encode(make().build()) + "\n" for uid, make in DASHBOARDS.items()}


def main() -> None:
    for path in DIRECTORY.glob("*.json"):
        path.unlink()
    for name, text in written().items():
        (DIRECTORY / name).write_text(text)
    for name, text in pages(written()).items():
        (PAGES / name).write_text(text)


if __name__ == "__main__":
    main()
