"""A page of the web UI in Chromium, and what is measured in it: a part of ``script/bench web``."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from playwright.sync_api import Browser, BrowserContext, CDPSession, Page, sync_playwright

from novacron.client import Client

CHROMIUM = "/usr/bin/chromium"
USER, PASSWORD = "bench-web", "a long password for a benchmark"
WAIT_MS = 60_000
THROTTLED = {"offline": False, "latency": 50, "downloadThroughput": 1_250_000, "uploadThroughput": 1_250_000}
"""10 Mbit/s and 50 ms, as browsers' own tools emulate them for requests."""
FIRST = '.nc-body-row[aria-rowindex="2"] a'
CONSTANTS = f"const FIRST = {json.dumps(FIRST)}, WAIT_MS = {WAIT_MS};"
SCRIPT = f"(() => {{ {CONSTANTS}\n{Path(__file__).with_suffix('.js').read_text()} }})();"


class Memory(NamedTuple):
    """What a page needs, after its rubbish was collected."""

    heap_mb: float
    process_mb: float
    """All of the process that shows it."""


class Web:
    """A browser before a server's web UI."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser, self.url = browser, url

    @contextlib.contextmanager
    def context(self, session: BrowserContext | None = None) -> Iterator[BrowserContext]:
        """Open a browser in which nothing is cached; somebody is logged in if ``session`` is another in which that is
        so."""
        state = None if session is None else session.storage_state()
        context = self.browser.new_context(
            ignore_https_errors=True, base_url=self.url, viewport={"width": 1400, "height": 1000}, storage_state=state
        )
        context.set_default_timeout(WAIT_MS)
        context.add_init_script(SCRIPT)
        try:
            yield context
        finally:
            context.close()

    def process_mb(self) -> float:
        """Return the memory of the largest process that shows pages."""
        session = self.browser.new_browser_cdp_session()
        try:
            shown = session.send("SystemInfo.getProcessInfo")["processInfo"]
        finally:
            session.detach()
        return max(_own_mb(one["id"]) for one in shown if one["type"] == "renderer")


@contextlib.contextmanager
def opened(url: str, executable: Path | str = CHROMIUM) -> Iterator[Web]:
    """Run Chromium for as long as the block runs."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        try:
            yield Web(browser, url)
        finally:
            browser.close()


def make_user(client: Client) -> None:
    """Make the user who logs in to pages."""
    made = client.create_user(USER, password=PASSWORD)
    client.grant(made["id"], "administrator", None)


def throttle(page: Page) -> None:
    """Let a page's requests take 50 ms more, and come at 10 Mbit/s."""
    page.context.new_cdp_session(page).send("Network.emulateNetworkConditions", THROTTLED)


def log_in(page: Page, first: str) -> float:
    """Open the list of VMs and log in; return the milliseconds from there until the list's first row is shown."""
    page.goto("/ui/vms")
    page.get_by_label("User").fill(USER)
    page.get_by_label("Password").fill(PASSWORD)
    page.evaluate("name => window.ncAfter('click', name)", first)
    page.get_by_role("button", name="Log in", exact=True).click()
    return measured(page)


def open_list(page: Page, first: str, query: str = "") -> float:
    """Open the list of VMs with a session; return the milliseconds from there until its first row is shown."""
    page.goto(f"/ui/vms{query}", wait_until="commit")
    page.wait_for_function("([row, name]) => document.querySelector(row)?.textContent === name", arg=[FIRST, first])
    return float(page.evaluate("performance.now()"))


def largest_paint_ms(page: Page) -> float:
    """Return when the largest thing was painted, as browsers define it."""
    return float(page.evaluate("window.ncLcp"))


def measured(page: Page) -> float:
    return float(page.evaluate("window.ncMeasured"))


def messages(page: Page) -> int:
    """Return how many messages its streams have had."""
    return int(page.evaluate("window.ncMessages"))


def keystroke(page: Page, key: str, first: str) -> float:
    """Press a key in the search; return the milliseconds until the list begins with this VM."""
    page.evaluate("name => window.ncAfter('keydown', name)", first)
    page.keyboard.press(key)
    return measured(page)


def click(page: Page, title: str, first: str) -> float:
    """Sort by a column; return the milliseconds until the list begins with this VM."""
    page.evaluate("name => window.ncAfter('click', name)", first)
    page.get_by_role("columnheader", name=title).get_by_role("button").click()
    return measured(page)


def rename(page: Page, client: Client, vm: str, name: str) -> float:
    """Rename a VM of the page; return the milliseconds from the request until the name is shown."""
    page.evaluate("name => window.ncSeen(name)", name)
    began = time.time()
    client.request("PATCH", f"/api/v1/vms/{vm}", {"name": name})
    return measured(page) - 1e3 * began


def scroll(page: Page, seconds: float) -> tuple[float, float]:
    """Scroll the list; return frames a second, and the longest wait for one in milliseconds."""
    rate, longest = page.evaluate("lasts => window.ncScroll(lasts)", 1e3 * seconds)
    return float(rate), float(longest)


def memory(web: Web, session: CDPSession) -> Memory:
    """Collect a page's rubbish, and return what remains."""
    session.send("HeapProfiler.collectGarbage")
    metrics: list[dict[str, Any]] = session.send("Performance.getMetrics")["metrics"]
    heap = next(one["value"] for one in metrics if one["name"] == "JSHeapUsedSize")
    return Memory(heap / 1e6, web.process_mb())


def _own_mb(pid: int) -> float:
    """Return what a process has alone, without what it shares."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty"))) / 1e3
