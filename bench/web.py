"""The web UI with many VMs, in Chromium: ``script/bench web``. The server, its database and the nodes' links are real;
what is behind the links is simulated, except for the console's guest."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from playwright.sync_api import Page, sync_playwright

from bench import web_page
from bench.api_load import Stand, timed
from bench.report import Figure, median, parser, report
from bench.web_console import WAN, console_figures
from bench.web_page import Memory, Web
from bench.web_streams import stream_figures
from lab.hosts import lab, missing
from lab.images import images_dir
from lab.platform import clean_up_when_ended, default_cache, open_directory, platform
from lab.ports import free_ports
from novacron.api.edge.web_ui import BUILT

FIRST_PAGE_KB, LIST_MS, PAINT_MS, ROWS_MS, CHANGE_MS, FRAMES, PAGE_MB = 250.0, 1500.0, 1000.0, 150.0, 300.0, 50.0, 200.0
CHANGES_PER_S = 200.0
LIGHTHOUSE = "12.2.3"
CATEGORIES = {"accessibility": "accessibility", "best-practices": "best practices"}
PARTS = ("page", "changes", "memory", "streams", "lighthouse", "console")
NAME_DIGITS = 6
FIRST = "vm-" + "0" * NAME_DIGITS
RATES = (1.0, 10.0)
"""Changes a second while many pages are open."""
SAMPLES_MIN, SAMPLE_MS = 20, 5000
T_95 = 1.96
NODE = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"}
"""Node.js is in the environment, as for the build."""


class Size(NamedTuple):
    """How much is measured."""

    nodes: int
    vms: int
    rounds: int
    renames: int
    scroll_s: float
    memory_s: float
    pages: int
    stream_s: float
    keys: int


FULL = Size(200, 100_000, 7, 150, 10, 1200, 1000, 20, 200)
QUICK = Size(20, 10_000, 3, 40, 5, 60, 200, 5, 60)
SMOKE = Size(2, 100, 1, 3, 0.5, 2, 10, 0.5, 5)
WARM_S = 150.0
"""Until then a page's memory grows: it remembers changes for two minutes."""


def script_figure() -> Figure:
    """How much script the first page needs, as it is sent."""
    page = (BUILT / "index.html").read_text()
    names = re.findall(r'(?:src|href)="/ui/(assets/[^"]+\.js)"', page)
    size = sum((BUILT / f"{name}.br").stat().st_size for name in names)
    return Figure("script of the first page, compressed", size / 1e3, "kB", FIRST_PAGE_KB)


def page_figures(stand: Stand, web: Web, size: Size) -> list[Figure]:
    """Open the list, and filter and sort it."""
    vms = f"{size.vms:,} VMs"
    logins, opens, paints, rows = [], [], [], []
    for number in range(size.rounds):
        with web.context() as session:
            page = session.new_page()
            web_page.throttle(page)
            logins.append(web_page.log_in(page, FIRST))
            with web.context(session) as context:
                page = context.new_page()
                web_page.throttle(page)
                opens.append(web_page.open_list(page, FIRST))
            with web.context(session) as context:
                page = context.new_page()
                web_page.open_list(page, FIRST)
                paints.append(web_page.largest_paint_ms(page))
                rows += _filtered_and_sorted(page, size, number)
    return [
        script_figure(),
        median(f"login to the list of {vms}, 10 Mbit/s, 50 ms", logins, "ms", LIST_MS),
        median("  ... nothing cached, logged in: address to list", opens, "ms", LIST_MS),
        median("  ... largest contentful paint, loopback", paints, "ms", PAINT_MS),
        Figure(f"filter or sort {vms}: key or click to rows, p95 (of {len(rows)})", _quantile(rows, 95), "ms", ROWS_MS),
        Figure("  ... median", statistics.median(rows), "ms"),
    ]


def _filtered_and_sorted(page: Page, size: Size, number: int) -> list[float]:
    """Type the digits of a name one after the other, then sort by name, backwards and forwards."""
    digits = len(str(size.vms - 1))
    typed = "vm-" + "0" * (NAME_DIGITS - digits)
    web_page.open_list(page, FIRST, f"?name={typed}")
    page.get_by_label("Name begins with").focus()
    page.keyboard.press("End")
    took_ms = []
    for key in str(9 - number % 9) * digits:
        typed += key
        took_ms.append(web_page.keystroke(page, key, typed.ljust(len(FIRST), "0")))
    web_page.open_list(page, FIRST)
    took_ms.append(web_page.click(page, "Name", f"vm-{size.vms - 1:0{NAME_DIGITS}d}"))
    took_ms.append(web_page.click(page, "Name", FIRST))
    return took_ms


def change_figures(stand: Stand, web: Web, size: Size) -> list[Figure]:
    """Rename a VM that is shown, and scroll, while many others change."""
    took_ms, frames, longest = [], [], []
    with web.context() as context, stand.changing(CHANGES_PER_S):
        page = context.new_page()
        web_page.log_in(page, FIRST)
        vm = next(iter(stand.client.list("vms", limit=1, name="vm-000003")))["id"]
        began, messages = time.monotonic(), web_page.messages(page)
        for number in range(size.renames):
            took_ms.append(web_page.rename(page, stand.client, vm, f"vm-000003-{number}"))
        rate = (web_page.messages(page) - messages) / (time.monotonic() - began)
        for _ in range(size.rounds):
            per_s, longest_ms = web_page.scroll(page, size.scroll_s)
            frames.append(per_s)
            longest.append(longest_ms)
        stand.client.request("PATCH", f"/api/v1/vms/{vm}", {"name": "vm-000003"})
    return [
        Figure(f"a rename, request to page, p99 (of {len(took_ms)})", _quantile(took_ms, 99), "ms", CHANGE_MS),
        Figure("  ... median", statistics.median(took_ms), "ms"),
        Figure("  ... messages to the page meanwhile", rate, "/s"),
        median("  ... frames while scrolling", frames, "/s", FRAMES, at_least=True),
        median("  ... longest wait for a frame", longest, "ms"),
    ]


def memory_figures(stand: Stand, web: Web, size: Size) -> list[Figure]:
    """Look at a page's memory while VMs change."""
    samples: list[tuple[float, Memory]] = []
    with web.context() as context, stand.changing(CHANGES_PER_S):
        page = context.new_page()
        web_page.log_in(page, FIRST)
        session = context.new_cdp_session(page)
        session.send("Performance.enable")
        began = time.monotonic()
        while (now := time.monotonic() - began) < size.memory_s or len(samples) < SAMPLES_MIN:
            samples.append((now, web_page.memory(web, session)))
            page.wait_for_timeout(min(SAMPLE_MS, 1e3 * size.memory_s / SAMPLES_MIN))
    warm_s = WARM_S if size.memory_s > 2 * WARM_S else size.memory_s / 2
    heaps = [(at, memory.heap_mb) for at, memory in samples if at >= warm_s]
    growth, error = fitted(heaps)
    last = samples[-1][1]
    return [
        Figure(f"memory of a page after {size.memory_s / 60:.1f} min of such changes", last.heap_mb, "MB", PAGE_MB),
        Figure("  ... of the process that shows it", last.process_mb, "MB"),
        Figure("  ... growth, fitted line", 3600 * growth, "MB/h"),
        Figure("  ... the least growth that the samples allow (97.5 %)", 3600 * (growth - T_95 * error), "MB/h", 0),
    ]


def fitted(samples: list[tuple[float, float]]) -> tuple[float, float]:
    """Return the slope of the line that fits best, and its standard error."""
    if len(samples) < 3:
        return 0.0, 0.0
    times, values = zip(*samples, strict=True)
    slope, intercept = statistics.linear_regression(times, values)
    residuals = sum((value - intercept - slope * at) ** 2 for at, value in samples)
    spread = sum((at - statistics.fmean(times)) ** 2 for at in times)
    return slope, (residuals / (len(samples) - 2) / spread) ** 0.5


def lighthouse_figures(stand: Stand, directory: Path) -> list[Figure]:
    """Let Lighthouse judge the list of VMs and the page of one, as somebody who is logged in sees them."""
    tool = _lighthouse(default_cache() / f"lighthouse-{LIGHTHOUSE}")
    port = free_ports(1)[0]
    vm = next(iter(stand.client.list("vms", limit=1)))["id"]
    scores: dict[str, list[float]] = {name: [] for name in CATEGORIES}
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            directory / "profile", executable_path=web_page.CHROMIUM, ignore_https_errors=True,
            args=["--no-sandbox", "--ignore-certificate-errors", f"--remote-debugging-port={port}"],
            base_url=stand.client.config.url,
        )  # fmt: skip
        context.add_init_script(web_page.SCRIPT)
        web_page.log_in(context.pages[0], FIRST)
        for path in ("/ui/", "/ui/vms", f"/ui/vms/{vm}", "/ui/sites"):
            found = _judged(tool, f"{stand.client.config.url}{path}", port, directory)
            for name in CATEGORIES:
                scores[name].append(100 * found["categories"][name]["score"])
            for audit in found["audits"].values():
                if audit["score"] is not None and audit["score"] < 1 and audit["id"] in _weighed(found):
                    print(f"lighthouse, {path}: {audit['id']}: {audit['title']}", flush=True)
        context.close()
    return [
        Figure(f"Lighthouse {LIGHTHOUSE}: {words}, worst page", min(scores[name]), "", 100, tuple(scores[name]), True)
        for name, words in CATEGORIES.items()
    ]


def _weighed(found: dict[str, Any]) -> set[str]:
    parts = [found["categories"][name]["auditRefs"] for name in CATEGORIES]
    return {part["id"] for refs in parts for part in refs if part["weight"] > 0}


def _lighthouse(directory: Path) -> list[str]:
    """Return the command that runs Lighthouse; install it first if it is not there."""
    program = directory / "node_modules/lighthouse/cli/index.js"
    if not program.exists():
        subprocess.run(
            ["npm", "install", "--prefix", str(directory), "--ignore-scripts", "--no-audit", "--no-fund",
             "--loglevel=error", f"lighthouse@{LIGHTHOUSE}"],
            check=True, timeout=300, env=NODE,
        )  # fmt: skip
    return ["node", str(program)]


def _judged(tool: list[str], url: str, port: int, directory: Path) -> dict[str, Any]:
    answer = directory / "lighthouse.json"
    subprocess.run(
        [*tool, url, f"--port={port}", "--output=json", f"--output-path={answer}", "--quiet", "--preset=desktop",
         "--disable-storage-reset", f"--only-categories={','.join(CATEGORIES)}", "--only-audits=network-requests"],
        check=True, timeout=300, env={**NODE, "CHROME_PATH": web_page.CHROMIUM},
    )  # fmt: skip
    found: dict[str, Any] = json.loads(answer.read_text())
    if not any(
        urlsplit(one["url"]).path == "/api/v1/me" and one["statusCode"] == 200
        for one in found["audits"]["network-requests"]["details"]["items"]
    ):
        raise RuntimeError(f"Lighthouse saw {url} as somebody who is not logged in")
    return found


def _quantile(samples: list[float], percent: int) -> float:
    """Return a percentile; of few samples the largest, which is no less."""
    return statistics.quantiles(samples, n=100)[percent - 1] if len(samples) >= 100 else max(samples)


def _with_many_vms(size: Size, parts: list[str]) -> list[Figure]:
    figures: list[Figure] = []
    with open_directory("nvw-") as directory, Stand(directory, size.nodes).run() as stand:
        print(f"{size.nodes} nodes are ready", flush=True)
        print(f"{size.vms} VMs are there, after {timed(lambda: stand.fill(size.vms)):.0f} s", flush=True)
        web_page.make_user(stand.client)
        with_page = {"page": page_figures, "changes": change_figures, "memory": memory_figures}
        for part in parts:
            if part in with_page:
                with web_page.opened(stand.client.config.url) as web:
                    figures += with_page[part](stand, web, size)
            elif part == "streams":
                figures += stream_figures(stand, size.pages, RATES, size.stream_s)
            elif part == "lighthouse":
                figures += lighthouse_figures(stand, directory)
            print(f"{part}: done", flush=True)
    return figures


def _over_a_wan(size: Size) -> list[Figure]:
    with (
        open_directory("nvw-") as directory,
        lab(f"nvw{os.getpid()}", default_cache(), WAN) as hosts,
        platform(directory / "p", hosts, images_dir()) as p,
    ):
        return console_figures(p, directory, size.keys)


def main() -> int:
    line = parser("web", __doc__, "a tenth of it, and minutes")
    line.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    line.add_argument("--minutes", type=float, help="how long a page's memory is watched")
    options = line.parse_args()
    size = SMOKE if options.smoke else QUICK if options.quick else FULL
    if options.minutes is not None:
        size = size._replace(memory_s=60 * options.minutes)
    lacks = missing() if "console" in options.only else []
    if lacks:
        print("the console's part needs network namespaces: " + "; ".join(lacks), file=sys.stderr)
        return 1
    clean_up_when_ended()
    figures: list[Figure] = []
    if many := [part for part in options.only if part != "console"]:
        figures += _with_many_vms(size, many)
    if "console" in options.only:
        figures += _over_a_wan(size)
    report("web", figures, options.json, smoke=options.smoke)
    return 0


if __name__ == "__main__":
    sys.exit(main())
