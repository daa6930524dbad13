"""Pages that are executed, and what of them is not."""

from __future__ import annotations

from pathlib import Path

from lab.documents.model import ENDLESS, TERMINAL, PageRun
from lab.platform import Platform

SMALL = {"--memory 256": "--memory 128"}
SHOP = """kind: network
name: shop
subnet: 10.90.7.0/24
---
kind: volume
name: shop-data
size_mib: 64
tags: [shop]
---
kind: vm
name: shop-1
image: tiny
memory_mib: 256
power: stopped
tags: [shop]
nics: [{network: shop}]
"""


def _with_shop(site: Platform, here: Path) -> None:
    (here / "shop.yaml").write_text(SHOP)


TUTORIAL = PageRun(
    "docs/tutorial.md",
    {
        **SMALL,
        "--memory 384": "--memory 160",
        "$(hostname -s)": "host-a",
        "vm show nothing; echo $?": "vm show nothing",
    },
    {"novacron up": ENDLESS, "novacron vm console": TERMINAL},
    {"novacron vm show web": ("novacron vm stop web --wait",)},  # people power it off in the console
    {"novacron vm show nothing": 3},
)
README = PageRun(
    "README.md",
    SMALL,
    {
        "novacron vm console": TERMINAL, "novacron events --follow": ENDLESS,
        "novacron web": "opens a browser; login links have tests of their own",
    },
    {
        "novacron vm migrate web --to host-a --dry-run": (
            "novacron vm create web --image tiny --memory 128 --node host-b --wait",
        ),
    },
)  # fmt: skip
COMMAND_LINE = PageRun(
    "docs/how-to/command-line.md",
    left_out={
        "novacron login": TERMINAL, "novacron logout": "ends the login with which the tests work",
        "novacron vm list --watch": ENDLESS, "novacron edit": TERMINAL,
    },
    given={
        "novacron vm list --filter state=running --filter 'name=web-*' --sort=-memory": (
            "novacron vm create web-1 --image tiny --memory 128 --no-start --wait",
        ),
        "novacron volume delete scratch --yes": ("novacron volume create scratch --size 64M --pool small --wait",),
    },
    prepare=_with_shop,
)  # fmt: skip
FORECASTS = PageRun("docs/how-to/forecasts.md", quick=True)
AUDIT = PageRun(
    "docs/how-to/audit.md",
    {
        "/secure/heads-$(date +%F).jsonl": "heads-2026-11-27.jsonl",
        "/secure/heads": "heads",
        "novacron user erase ann": "novacron user erase ann --yes",
    },
    {"novacron server": ENDLESS},
    {"novacron user erase ann --yes": ("novacron user create ann", "novacron grant create ann viewer")},
)
ALL = (TUTORIAL, README, COMMAND_LINE, FORECASTS, AUDIT)
LATER = "not executed yet"
_CLOUD = "takes a cloud or a Kubernetes cluster, which this machine has not"
_DEBIAN = (
    "takes hosts with packages and systemd; whole Debian hosts have tests of their own, which do not read the page"
)
NOT_YET = {
    "deploy-on-aws.md": _CLOUD,
    "kubernetes.md": _CLOUD,
    "install.md": _DEBIAN,
    "upgrade.md": _DEBIAN,
    "several-hosts.md": _DEBIAN,
    "three-hosts.md": _DEBIAN,
    "database-cluster.md": _DEBIAN,
}
"""Why pages are not executed whose commands do not fit on a platform of the lab."""
