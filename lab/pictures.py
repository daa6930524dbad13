"""Draws what the dashboards show, for the documentation: ``python -m lab.pictures``. A platform of two hosts runs for
two minutes, is asked, and moves VMs; a real Prometheus watches it, and what it says of each panel is drawn as SVG.
Grafana draws more beautifully, but is not to be had everywhere."""

from __future__ import annotations

import html
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from deploy.grafana.__main__ import DASHBOARDS, DIRECTORY
from lab.hosts import lab, missing
from lab.images import images_dir
from lab.observers import Alertmanager, Exporter, Prometheus, Webhook
from lab.platform import Platform, default_cache, open_directory, platform

TARGET = Path(__file__).parents[1] / "docs/images"
SECONDS, STEP_S = 120, 2
UNIT_PX, ROW_PX, GAP = 50, 30, 6
LINES_MAX, NAMES_MAX = 12, 4
CHARACTER_PX = 6.2
COLORS = ("#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#1f78c1", "#ba43a9", "#705da0", "#508642", "#cca300")
UNITS = {"percentunit": (100, "%"), "s": (1, " s"), "bytes": (1, "B"), "Bps": (1, "B/s"), "reqps": (1, "/s"),
         "ops": (1, "/s"), "iops": (1, "/s"), "pps": (1, "/s")}  # fmt: skip
Series = list[tuple[str, list[tuple[float, float]]]]


def shown(value: float, unit: str) -> str:
    """Return a value as people read it."""
    factor, text = UNITS.get(unit, (1, ""))
    value *= factor
    if text.startswith("B"):
        for prefix in ("", "k", "M", "G", "T"):
            if abs(value) < 1000 or prefix == "T":
                return f"{value:.3g} {prefix}{text}"
            value /= 1000
    if unit == "s" and 0 < abs(value) < 1:
        return f"{value * 1e3:.3g} ms"
    if unit == "s" and abs(value) >= 86400:
        return f"{value / 86400:,.0f} days"
    return f"{value:,.3g}{text}" if abs(value) < 1e4 else f"{value:,.0f}{text}"


def plain(expression: str) -> str:
    return re.sub(r"\$\{?(\w+)\}?", ".*", expression.replace("$__rate_interval", "10s"))


def named(legend: str, labels: dict[str, str]) -> str:
    text = re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), legend)
    return text or ", ".join(f"{name} {value}" for name, value in labels.items())


def series_of(prometheus: Prometheus, panel: dict[str, Any], end: float) -> Series:
    series: Series = []
    for target in panel["targets"]:
        answer = prometheus.ask("query_range", query=plain(target["expr"]), start=str(end - SECONDS), end=str(end),
                                step=str(STEP_S))  # fmt: skip
        for result in answer["result"]:
            points = [(at, float(value)) for at, value in result["values"] if value not in ("NaN", "+Inf", "-Inf")]
            if points:
                series.append((named(target.get("legendFormat", ""), result["metric"]), points))
    return series


def graph(panel: dict[str, Any], series: Series, end: float, width: int, height: int) -> Iterator[str]:
    unit = panel["fieldConfig"]["defaults"].get("unit", "none")
    top = max((value for _, points in series for _, value in points), default=1.0) or 1.0
    start, end_, above, below = 64, width - 10, 26, height - 34
    for share in (0.0, 0.5, 1.0):
        y = below - share * (below - above)
        yield f'<line x1="{start}" y1="{y:.0f}" x2="{end_}" y2="{y:.0f}" stroke="#2c3235"/>'
        yield f'<text x="{start - 4}" y="{y + 4:.0f}" class="small" text-anchor="end">{shown(share * top, unit)}</text>'
    for number, (_, points) in enumerate(series[:LINES_MAX]):
        path = " ".join(
            f"{start + (end_ - start) * (1 - (end - at) / SECONDS):.0f},{below - value / top * (below - above):.1f}"
            for at, value in points
        )
        yield f'<polyline points="{path}" fill="none" stroke="{COLORS[number % len(COLORS)]}" stroke-width="1.3"/>'
    x = float(start)
    for number, (name, _) in enumerate(series[:NAMES_MAX]):
        text = name[:30]
        if number and x + 11 + CHARACTER_PX * len(text) > end_:
            break
        yield f'<rect x="{x:.0f}" y="{height - 18}" width="8" height="8" fill="{COLORS[number]}"/>'
        yield f'<text x="{x + 11:.0f}" y="{height - 10}" class="small">{html.escape(text)}</text>'
        x += 22 + CHARACTER_PX * len(text)


def number(panel: dict[str, Any], series: Series, width: int, height: int) -> Iterator[str]:
    value = series[0][1][-1][1] if series else None
    unit = panel["fieldConfig"]["defaults"].get("unit", "none")
    text = "-" if value is None else shown(value, unit)
    at = f'x="{width / 2:.0f}" y="{height / 2 + 20:.0f}" text-anchor="middle"'
    yield f'<text {at} class="big">{html.escape(text)}</text>'


def rows(panel: dict[str, Any], series: Series, width: int) -> Iterator[str]:
    unit = panel["fieldConfig"]["defaults"].get("unit", "none")
    for place, (name, points) in enumerate(series[:9]):
        y = 44 + 20 * place
        yield f'<text x="10" y="{y}" class="small">{html.escape(name[:70])}</text>'
        yield f'<text x="{width - 10}" y="{y}" class="small" text-anchor="end">{shown(points[-1][1], unit)}</text>'


def drawn(dashboard: dict[str, Any], prometheus: Prometheus) -> str:
    """Return a dashboard as an SVG picture."""
    end, parts, bottom = time.time(), list[str](), 0
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        x, y = place["x"] * UNIT_PX, place["y"] * ROW_PX + 40
        width, height = place["w"] * UNIT_PX - GAP, place["h"] * ROW_PX - GAP
        bottom = max(bottom, y + height)
        parts.append(f'<g transform="translate({x},{y})">')
        if panel["type"] == "row":
            parts.append(f'<text x="4" y="18" class="row">{html.escape(panel["title"])}</text></g>')
            continue
        parts.append(f'<rect width="{width}" height="{height}" rx="3" class="panel"/>')
        parts.append(f'<text x="8" y="17" class="title">{html.escape(panel["title"])}</text>')
        series = series_of(prometheus, panel, end)
        match panel["type"]:
            case "timeseries":
                parts += graph(panel, series, end, width, height)
            case "stat":
                parts += number(panel, series, width, height)
            case _:
                parts += rows(panel, series, width)
        parts.append("</g>")
    style = (
        "text{font-family:Inter,Helvetica,Arial,sans-serif;fill:#d8d9da}.small{font-size:11px;fill:#9fa7b3}"
        ".title{font-size:13px}.row{font-size:14px;font-weight:bold}.big{font-size:30px;fill:#73bf69}"
        ".panel{fill:#181b1f;stroke:#2c3235}"
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{24 * UNIT_PX}" height="{bottom + 10}"><style>{style}</style>'
    )
    back = (
        f'<rect width="100%" height="100%" fill="#111217"/><text x="6" y="26" class="row">{dashboard["title"]}</text>'
    )
    return "\n".join([head, back, *parts, "</svg>", ""])


@contextmanager
def used(site: Platform) -> Iterator[None]:
    """Have VMs run, write and move, and people ask."""
    over = threading.Event()
    vms = [site.client.create_vm(name=f"web-{number}", image="disk", memory_mib=128) for number in range(4)]
    for vm in vms:
        site.wait_state(vm["id"], "running")

    def ask() -> None:
        from novacron.client import Client

        client = Client(site.client.config)
        while not over.wait(0.02):
            list(client.list("vms"))
            client.get("vms", vms[0]["id"])

    def move() -> None:
        while not over.wait(6):
            for vm in vms[:2]:
                target = "host-b" if site.client.get("vms", vm["id"])["node"] == "host-a" else "host-a"
                site.cli("vm", "migrate", vm["name"], "--to", target, check=False)
            site.cli("vm", "set", vms[2]["name"], "--start-order", str(int(time.time()) % 100), check=False)

    threads = [threading.Thread(target=work) for work in (ask, move)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def main() -> None:
    with ExitStack() as stack:
        directory = stack.enter_context(open_directory("nvp-"))
        hosts = stack.enter_context(lab(f"nvp{os.getpid()}", default_cache(), namespaces=not missing()))
        site = stack.enter_context(platform(directory / "p", hosts, images_dir()))
        webhook = stack.enter_context(Webhook().running())
        alertmanager = Alertmanager(directory / "am", webhook, 30)
        stack.callback(alertmanager.stop)
        exporter = Exporter(directory, "postgresql", site.postgres.url)
        stack.callback(exporter.stop)
        prometheus = Prometheus(
            directory / "prometheus", site, alertmanager.address, 30, {"localhost:9187": exporter.address}
        )
        stack.callback(prometheus.stop)
        with used(site):
            time.sleep(SECONDS + 10)
            for uid in DASHBOARDS:
                board = json.loads((DIRECTORY / f"{uid}.json").read_text())
                (TARGET / f"{uid}.svg").write_text(drawn(board, prometheus))
                print(f"docs/images/{uid}.svg", flush=True)


if __name__ == "__main__":
    main()
