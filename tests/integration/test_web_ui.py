"""The web UI in a browser, against real VMs; and how its files are served."""

from __future__ import annotations

import http.client
import json
import os
import re
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyotp
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, Route, expect, sync_playwright

from lab.platform import Platform
from novacron.client import Client, Config
from tests.integration.conftest import Api

NewVm = Callable[..., dict[str, Any]]
USER, PASSWORD = "web-ui", "correct horse battery"
SOON_MS = 40_000
MBIT = 125_000
PICTURES = os.environ.get("NOVACRON_PICTURES")
"""A folder for the pictures of the pages; without it, none are taken."""
PAGES = ("", "vms", "vms/create", "migrations", "nodes", "images", "templates", "networks", "security-groups",
         "volumes", "backups", "events", "forecasts", "drills", "sites", "projects", "users", "tokens", "audit",
         "settings", "account")  # fmt: skip
AXE = Path(__file__).parents[2] / "web/node_modules/axe-core/axe.min.js"
TOO_WIDE = """[...document.querySelectorAll("*")].filter(element => {
    const { overflowX } = getComputedStyle(element);
    const scrolls = element === document.documentElement || overflowX === "auto" || overflowX === "scroll";
    const table = element.closest(".nc-table, .nc-output, .nc-figures");
    return scrolls && element.scrollWidth > element.clientWidth + 1 && !table;
}).map(element => `${element.tagName} ${element.className}: ${element.scrollWidth} > ${element.clientWidth}`)"""
EXPECTED = ("/api/v1/me",)
"""A browser asks who is logged in, and writes into its console that nobody is."""
CUT_OFF = ("/api/v1/watch", "ERR_CONNECTION", "401")
"""What a browser writes into its console while the server is away, or when a session has ended."""
POISONED = ("description", "message", "reason", "vm_name", "image", "pool", "site", "cidr", "words")
HOSTILE = (
    "<img src=x onerror=\"window.hit='img'\">",
    "<script>window.hit='script'</script>",
    '"><svg onload="window.hit=\'svg\'">',
    "javascript:window.hit='link'",
    "{{constructor.constructor('window.hit=1')()}}",
    "</style><style>@import '//evil.example/x'</style>",
    "‮txt.exe\x00\x1b]0;title\x07",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def user(site: Platform) -> Iterator[str]:
    made = site.client.create_user(USER, password=PASSWORD)
    site.client.grant(made["id"], "administrator", None)
    yield USER
    site.client.request("DELETE", f"/api/v1/users/{made['id']}")


@pytest.fixture
def forgiven() -> list[str]:
    """Parts of what the browser's console may complain of."""
    return list(EXPECTED)


@pytest.fixture
def page(browser: Browser, site: Platform, user: str, forgiven: list[str]) -> Iterator[Page]:
    """A page on which nobody is logged in; whatever the console of its browser complains of fails the test."""
    context = browser.new_context(
        ignore_https_errors=True, base_url=site.client.config.url, viewport={"width": 1400, "height": 1000}
    )
    context.set_default_timeout(SOON_MS)
    complaints: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        said = f"{message.type}: {message.text} at {message.location}"
        if message.type in ("error", "warning") and not any(part in said for part in forgiven):
            complaints.append(said)

    context.on("console", heard)
    context.on(
        "weberror",
        lambda error: None if any(part in str(error.error) for part in forgiven)
        else complaints.append(f"uncaught: {error.error}"),
    )  # fmt: skip
    yield context.new_page()
    context.close()
    assert complaints == []


def log_in(page: Page, user: str = USER) -> None:
    page.goto("/ui/vms")
    type_password(page, user)
    until_current(page)


def type_password(page: Page, user: str = USER) -> None:
    page.get_by_label("User").fill(user)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in", exact=True).click()


def log_in_with_link(page: Page, site: Platform, at: str) -> None:
    """Log in as a user who has an API token."""
    token = site.client.create_token("web", user=USER)
    config = site.client.config
    link = Client(Config(config.url, token["secret"], config.ca)).create_login_link()
    page.goto(link["path"])
    page.get_by_role("button", name="Log in with this link").click()
    until_current(page)
    assert "login=" not in page.url
    page.goto(at)
    until_current(page)


def until_current(page: Page) -> None:
    expect(page.get_by_test_id("freshness")).to_contain_text("current, revision", timeout=SOON_MS)


def unsuitable(page: Page, what: str) -> dict[str, Any]:
    """Return what screen readers can't use, and what scrolls sideways on a phone."""
    page.set_viewport_size({"width": 1400, "height": 1000})
    page.evaluate(AXE.read_text())
    found: dict[str, Any] = {}
    for violation in page.evaluate("axe.run().then(result => result.violations)"):
        nodes = [(node["html"][:150], node["any"][:1]) for node in violation["nodes"][:3]]
        found[f"{what} {violation['id']}"] = nodes
    page.set_viewport_size({"width": 360, "height": 740})
    if wide := page.evaluate(TOO_WIDE):
        found[f"{what} 360 px"] = wide
    page.set_viewport_size({"width": 1400, "height": 1000})
    return found


def picture(page: Page, name: str) -> None:
    if PICTURES is not None:
        page.screenshot(path=Path(PICTURES) / f"web-{name}.png")


def test_a_vm_is_created_typed_into_and_deleted_in_a_browser(page: Page, site: Platform, new_vm: NewVm) -> None:
    other = new_vm(name="web-other")
    log_in_with_link(page, site, "/ui/vms")
    expect(page.get_by_role("link", name="web-other")).to_be_visible(timeout=SOON_MS)
    page.get_by_role("link", name="Overview").click()
    expect(page.get_by_role("heading", name="Capacity")).to_be_visible(timeout=SOON_MS)
    picture(page, "overview")
    page.get_by_role("link", name="Virtual machines").first.click()
    page.get_by_role("link", name="Create a VM").click()
    page.get_by_label("Name", exact=True).fill("web-made")
    page.get_by_label("Image").select_option("tiny")
    page.get_by_label("Memory in MiB").fill("128")
    picture(page, "create")
    page.get_by_role("button", name="Create", exact=True).click()
    expect(page.get_by_role("heading", name="web-made", exact=True)).to_be_visible(timeout=SOON_MS)
    try:
        expect(page.get_by_text("running", exact=True)).to_be_visible(timeout=SOON_MS)
        _use_consoles(page)
        _look_at_the_list(page, site, other)
        page.get_by_role("link", name="web-made").click()
        page.get_by_role("button", name="Delete").click()
        confirm = page.get_by_role("dialog").get_by_role("button", name="Delete")
        expect(confirm).to_be_disabled()
        page.get_by_label("Type web-made to confirm").fill("web-made")
        confirm.click()
        expect(page.get_by_text("VM web-made has been deleted.")).to_be_visible(timeout=SOON_MS)
    finally:
        for vm in site.client.list("vms"):
            if vm["name"] == "web-made" and not vm["deleting"]:
                site.client.delete("vms", vm["id"])


def _use_consoles(page: Page) -> None:
    page.get_by_role("button", name="Open the serial console").click()
    expect(page.get_by_text("Connected. What you type goes to the guest.")).to_be_visible(timeout=SOON_MS)
    terminal = page.get_by_test_id("terminal")
    expect(terminal).to_contain_text("tiny guest: ready", timeout=3 * SOON_MS)  # it boots on a machine that is busy
    page.keyboard.type("\recho $((6*7))7\r")
    expect(terminal).to_contain_text("427", timeout=SOON_MS)
    page.keyboard.type("printf '\\033[38;2;250;10;20mco%s\\033[0m' lour\r")
    expect(terminal.get_by_text("colour", exact=True).first).to_have_css("color", "rgb(250, 10, 20)", timeout=SOON_MS)
    page.get_by_role("button", name="Open the display").click()
    expect(page.get_by_text("Connected. Click into the picture to type.")).to_be_visible(timeout=SOON_MS)
    picture(page, "vm")
    page.get_by_role("button", name="Close the display").click()
    page.get_by_role("button", name="Close the serial console").click()


def _look_at_the_list(page: Page, site: Platform, other: dict[str, Any]) -> None:
    """Changes show without a reload; a selection ends when one of its VMs is gone."""
    page.get_by_role("link", name="Virtual machines").first.click()
    expect(page.get_by_role("link", name="web-made")).to_be_visible(timeout=SOON_MS)
    picture(page, "vms")
    row = page.get_by_role("row").filter(has_text="web-other")
    row.get_by_role("checkbox").check()
    expect(page.get_by_text("1 VM selected")).to_be_visible()
    site.client.request("PATCH", f"/api/v1/vms/{other['id']}", {"name": "web-renamed"})
    expect(page.get_by_role("link", name="web-renamed")).to_be_visible(timeout=SOON_MS)
    site.client.delete("vms", other["id"])
    expect(page.get_by_text("The list changed, so the selection of 1 VM was cleared.")).to_be_visible(timeout=SOON_MS)
    expect(page.get_by_text("0 VMs selected")).to_be_visible()


@pytest.mark.slow
def test_a_policy_is_made_and_run_and_its_backup_restored_in_a_browser(
    page: Page, site: Platform, new_vm: NewVm
) -> None:
    vm = new_vm(name="web-kept", image="disk")
    site.wait_state(vm["id"], "running")
    log_in_with_link(page, site, "/ui/backups")

    def fill_in(button: str, **fields: str) -> None:
        page.get_by_role("button", name=button).first.click()
        dialog = page.get_by_role("dialog")
        for label, value in fields.items():
            dialog.get_by_label(re.compile("^" + label.replace("_", " "))).fill(value)
        dialog.get_by_role("button", name=button.partition(":")[0], exact=True).click()
        expect(dialog).to_be_hidden(timeout=SOON_MS)

    try:
        fill_in("Create a repository", Name="web-nightly")
        fill_in("Create a policy", Name="web-policy", Repository="web-nightly", Back_up_these_VMs="web-kept")
        expect(page.get_by_text("1 named")).to_be_visible(timeout=SOON_MS)
        fill_in("Run now: web-policy")
        row = page.get_by_role("table", name="Backups").get_by_role("row").filter(has_text="web-kept")
        expect(row.get_by_text("kept", exact=True)).to_be_visible(timeout=3 * SOON_MS)
        expect(row.get_by_text("verified", exact=True)).to_be_visible(timeout=3 * SOON_MS)
        picture(page, "backups")
        fill_in("Restore: web-kept", Name_of_the_new_VM="web-restored")
        site.wait_state("web-restored", "running", 90)
        page.goto(f"/ui/vms/{vm['id']}")
        expect(page.get_by_text("by web-policy")).to_be_visible(timeout=SOON_MS)
    finally:
        site.cli("vm", "delete", "web-restored", "--wait", "--yes", check=False)
        site.cli("backup", "policy", "delete", "web-policy", check=False)
        for backup in site.client.list("backups", repository="web-nightly"):
            site.cli("backup", "delete", backup["id"], check=False)
        site.cli("backup", "repository", "delete", "web-nightly", check=False)


@pytest.mark.slow
def test_a_second_factor_is_added_and_asked_for_in_a_browser(page: Page, site: Platform) -> None:
    made = site.client.create_user("web-second", password=PASSWORD)
    site.client.grant(made["id"], "member", "default")
    try:
        log_in(page, "web-second")
        page.goto("/ui/account")
        page.get_by_role("button", name="Add an app").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Name").fill("phone")
        dialog.get_by_label("Your password").fill(PASSWORD)
        dialog.get_by_role("button", name="Add an app").click()
        secret = dialog.get_by_label("Secret for the app").inner_text()
        dialog.get_by_label("Code of your app").fill(pyotp.TOTP(secret).now())
        dialog.get_by_role("button", name="Confirm").click()
        code = dialog.get_by_role("list", name="Recovery codes").get_by_role("listitem").first.inner_text()
        dialog.get_by_role("button", name="Close").last.click()
        page.get_by_role("button", name="Log out").click()
        type_password(page, "web-second")
        page.get_by_role("button", name="Use a recovery code instead").click()
        page.get_by_label("Recovery code").fill(code)
        page.get_by_role("button", name="Log in", exact=True).click()
        until_current(page)
    finally:
        site.client.request("DELETE", f"/api/v1/users/{made['id']}")


@pytest.mark.slow
def test_every_page_suits_screen_readers_and_phones(page: Page, site: Platform, new_vm: NewVm) -> None:
    """In both themes, axe finds no violation; at 360 pixels, nothing but tables scrolls sideways."""
    vm = new_vm(name="web-seen")
    log_in(page)
    found: dict[str, Any] = {}
    for theme in ("light", "dark"):
        page.get_by_role("button", name=theme, exact=True).click()
        for path in (*PAGES, f"vms/{vm['id']}"):
            page.goto(f"/ui/{path}")
            until_current(page)
            page.get_by_role("heading", level=1).first.wait_for()
            expect(page.get_by_text("Asking the server …")).to_have_count(0, timeout=SOON_MS)
            found |= unsuitable(page, f"{theme} /{path}")
    assert found == {}, json.dumps(found, indent=2)


@pytest.mark.slow
def test_a_migration_is_charted_and_flows_on_the_map(page: Page, site: Platform, new_vm: NewVm) -> None:
    vm = new_vm(name="web-charted", node="host-a")
    site.wait_state(vm["id"], "running")
    site.client.configure_node("host-b", site="web-west")
    site.client.limit_link("default", "web-west", rate_bytes_per_s=MBIT)
    found: dict[str, Any] = {}
    try:
        log_in(page)
        site.client.act("vms", vm["id"], "migrate", {"target": "host-b"})
        page.goto(f"/ui/vms/{vm['id']}")
        page.get_by_role("button", name="Show it over time").click()
        for title in ("Bytes", "Rates", "Passes over memory", "Not sent, by kind"):
            expect(page.get_by_role("figure", name=title).locator("canvas")).to_be_visible(timeout=SOON_MS)
        chart = page.get_by_role("figure", name="Bytes")
        chart.get_by_text("As a table: Bytes").click()
        expect(chart.get_by_role("row").nth(2)).to_be_visible(timeout=SOON_MS)
        for theme in ("light", "dark"):
            page.get_by_role("button", name=theme, exact=True).click()
            found |= unsuitable(page, f"{theme} charts")
        page.get_by_role("link", name="Sites and links").click()
        link = page.get_by_role("img", name=re.compile("^Link default – web-west: [0-9.]+ of 1 Mbit.s; migrations: 1$"))
        expect(link).to_be_visible(timeout=SOON_MS)
        picture(page, "sites")
        found |= unsuitable(page, "map")
        link.focus()
        expect(page.locator(".nc-map-words")).to_contain_text("Link default – web-west")
        page.keyboard.press("Tab")
        expect(page.locator(".nc-map-words")).to_contain_text("Site default: 1 of 1 nodes are ready")
        page.go_back()
        page.get_by_role("button", name="Abort").click()
        expect(page.get_by_role("button", name="Abort")).to_have_count(0, timeout=SOON_MS)
        page.get_by_role("link", name="Sites and links").click()
        still = re.compile("^Link default – web-west: 0 of 1 Mbit.s; migrations: 0$")
        expect(page.get_by_role("img", name=still)).to_be_visible(timeout=SOON_MS)
    finally:
        site.client.unlimit_link("default", "web-west")
        site.client.configure_node("host-b", site="default")
    assert found == {}, json.dumps(found, indent=2)


@pytest.mark.slow
def test_what_a_vm_uses_is_charted(page: Page, site: Platform, new_vm: NewVm) -> None:
    vm = new_vm(name="web-used")
    site.wait_state(vm["id"], "running")
    log_in(page)
    page.goto(f"/ui/vms/{vm['id']}")
    page.get_by_role("button", name="Now", exact=True).click()
    for title in ("Processors", "Memory", "Disks", "Network"):
        expect(page.get_by_role("figure", name=title).locator("canvas")).to_be_visible(timeout=SOON_MS)
    expect(page.get_by_role("figure", name="Memory")).to_contain_text(re.compile(r"Of the host: [\d.]+ MiB"))
    found = unsuitable(page, "charts of a VM")
    page.get_by_role("button", name="Two weeks").click()
    expect(page.get_by_text("No hour of its load is known yet")).to_be_visible(timeout=SOON_MS)
    assert found == {}, json.dumps(found, indent=2)


@pytest.mark.slow
def test_a_picture_shows_what_can_reach_what(page: Page, site: Platform) -> None:
    client = site.client
    client.request("POST", "/api/v1/networks", {"name": "web-net", "subnet": "10.99.0.0/24"})
    try:
        log_in(page)
        page.goto("/ui/networks")
        expect(page.get_by_role("img", name="▦ web-net reaches outside: any")).to_be_visible(timeout=SOON_MS)
        rules = [{"direction": "in", "protocol": "tcp", "ports": "443", "cidr": "10.0.0.0/8"}]
        client.request("POST", "/api/v1/security-groups", {"name": "web-group", "rules": rules})
        way = page.get_by_role("img", name="10.0.0.0/8 reaches @web-group: tcp 443")
        expect(way).to_be_visible(timeout=SOON_MS)
        picture(page, "networks")
        found = unsuitable(page, "networks")
        way.focus()
        expect(page.locator(".nc-map-words")).to_contain_text("10.0.0.0/8 reaches @web-group: tcp 443")
    finally:
        client.request("DELETE", "/api/v1/security-groups/web-group")
        client.request("DELETE", "/api/v1/networks/web-net")
    assert found == {}, json.dumps(found, indent=2)


@pytest.mark.slow
def test_the_keyboard_goes_everywhere(page: Page, site: Platform, new_vm: NewVm) -> None:
    new_vm(name="web-keys-a")
    vm = new_vm(name="web-keys-b")
    log_in(page)
    page.get_by_role("link", name="web-keys-a").wait_for()
    page.keyboard.press("/")
    expect(page.get_by_label("Name begins with")).to_be_focused()
    page.keyboard.type("web-keys")
    page.get_by_label("Name begins with").blur()
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("x")
    expect(page.get_by_role("row").filter(has_text="web-keys-b").get_by_role("checkbox")).to_be_checked()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="web-keys-b", exact=True)).to_be_visible(timeout=SOON_MS)
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_contain_text("Go to a page or a VM")
    page.keyboard.press("Escape")
    page.keyboard.press("Control+k")
    page.get_by_label("Page or VM", exact=True).fill("web-keys-a")
    expect(page.get_by_role("option", name="VM web-keys-a")).to_be_visible(timeout=SOON_MS)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="web-keys-a", exact=True)).to_be_visible(timeout=SOON_MS)
    page.keyboard.press("Control+k")
    page.get_by_label("Page or VM", exact=True).fill("audit")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Audit log", exact=True)).to_be_visible(timeout=SOON_MS)
    assert vm["id"] not in page.url


@pytest.mark.slow
def test_a_view_is_saved_shared_and_exported(page: Page, site: Platform, new_vm: NewVm) -> None:
    new_vm(name="web-view")
    log_in(page)
    page.goto("/ui/vms?name=web-vi&sort=-name")
    expect(page.get_by_label("Name begins with")).to_have_value("web-vi", timeout=SOON_MS)
    page.get_by_role("button", name="Save this view").click()
    page.get_by_role("dialog").get_by_label("Name").fill("mine")
    page.get_by_role("dialog").get_by_role("button", name="Save this view").click()
    page.goto("/ui/vms")
    page.get_by_label("Saved view").select_option("mine")
    expect(page).to_have_url(re.compile(r"name=web-vi&sort=-name$"))
    page.get_by_role("link", name="web-view").wait_for()
    with page.expect_download() as saved:
        page.get_by_role("button", name="CSV: Virtual machines").click()
    text = Path(saved.value.path()).read_text()
    assert text.startswith("Name,State,Node,") and "\nweb-view," in text.replace("\r", "")


@pytest.mark.slow
def test_hostile_words_are_text_on_every_page(page: Page, site: Platform) -> None:
    """The server would refuse most of these names; the UI must not depend on that."""
    log_in(page)

    def poison(route: Route) -> None:
        answer = route.fetch()
        body = answer.json()
        route.fulfill(response=answer, body=json.dumps(_poisoned(body)))

    client = site.client
    client.request("POST", "/api/v1/networks", {"name": "web-hostile", "subnet": "10.98.0.0/24"})
    client.request("POST", "/api/v1/security-groups", {"name": "web-hostile", "rules": [{"cidr": "10.0.0.0/8"}]})
    kinds = "vms|nodes|migrations|networks|volumes|images|events|sites|links|security-groups|pools|capacity"
    page.route(re.compile(rf"/api/v1/({kinds})(\?|$)"), poison)
    pages = ("", "vms", "nodes", "migrations", "networks", "volumes", "images", "events", "sites", "forecasts")
    try:
        _look_for_effects(page, pages)
    finally:
        client.request("DELETE", "/api/v1/security-groups/web-hostile")
        client.request("DELETE", "/api/v1/networks/web-hostile")


def _look_for_effects(page: Page, pages: tuple[str, ...]) -> None:
    for name in pages:
        page.goto(f"/ui/{name}")
        expect(page.get_by_test_id("freshness")).to_contain_text("current, revision", timeout=SOON_MS)
        if name in ("nodes", "images", "events"):
            expect(page.get_by_text(HOSTILE[0]).first).to_be_visible(timeout=SOON_MS)
        if name in ("networks", "sites"):
            drawn = page.locator(".nc-map g", has_text=HOSTILE[0][:10])
            expect(drawn.first).to_be_visible(timeout=SOON_MS)
        assert page.evaluate("window.hit") is None, name


@pytest.mark.slow
def test_a_page_outlives_a_restart_of_the_server(
    page: Page, site: Platform, new_vm: NewVm, forgiven: list[str]
) -> None:
    """What was typed and selected stays, and what happened meanwhile shows, without a reload."""
    forgiven += CUT_OFF
    vm = new_vm(name="web-stays")
    log_in(page)
    page.get_by_label("Name begins with").fill("web-st")
    page.get_by_role("row").filter(has_text="web-stays").get_by_role("checkbox").check()
    form = page.context.new_page()
    form.goto("/ui/vms/create")
    until_current(form)
    form.get_by_label("Name", exact=True).fill("web-typed")
    for shown in (page, form):
        shown.evaluate("window.loaded = 'once'")
    site.server.stop()
    for shown in (page, form):
        expect(shown.get_by_test_id("freshness")).to_contain_text("behind since", timeout=SOON_MS)
    site.server.start()
    site.wait_ready()
    site.client.request("PATCH", f"/api/v1/vms/{vm['id']}", {"name": "web-still-there"})
    for shown in (page, form):
        until_current(shown)
        assert shown.evaluate("window.loaded") == "once", "the page was loaded again"
    expect(page.get_by_role("link", name="web-still-there")).to_be_visible(timeout=SOON_MS)
    expect(page.get_by_label("Name begins with")).to_have_value("web-st")
    expect(page.get_by_role("row").filter(has_text="web-still-there").get_by_role("checkbox")).to_be_checked()
    expect(form.get_by_label("Name", exact=True)).to_have_value("web-typed")


@pytest.mark.slow
def test_a_page_outlives_its_session(page: Page, site: Platform, forgiven: list[str]) -> None:
    """Somebody ends the session of a page on which something was typed; after a login, it is still there."""
    forgiven += CUT_OFF
    log_in(page)
    page.goto("/ui/vms/create")
    until_current(page)
    page.get_by_label("Name", exact=True).fill("web-typed")
    for token in site.client.list("tokens", user=USER):
        if token["kind"] == "session" and not token["revoked"]:
            site.client.request("DELETE", f"/api/v1/tokens/{token['id']}")
    again = page.get_by_role("dialog", name="Log in again")
    expect(again).to_be_visible(timeout=SOON_MS)
    expect(again.get_by_label("User")).to_have_value(USER)
    type_password(page)
    expect(again).to_be_hidden(timeout=SOON_MS)
    until_current(page)
    expect(page.get_by_label("Name", exact=True)).to_have_value("web-typed")


@pytest.mark.slow
def test_an_error_in_a_page_is_reported_and_shown_with_its_id(page: Page, site: Platform, forgiven: list[str]) -> None:
    forgiven += ["web-went-wrong", "null"]
    log_in(page)

    def until_logged(shown: Locator, what: str) -> None:
        expect(shown).to_contain_text(re.compile("whose log has it as [A-Za-z0-9-]+"), timeout=SOON_MS)
        found = re.search(r"whose log has it as ([A-Za-z0-9-]+)", shown.inner_text())
        assert found is not None
        (line,) = [line for line in site.server.log.read_text().splitlines() if "a page of the web UI failed" in line
                   and what in line]  # fmt: skip
        assert found[1] in line and USER in line

    page.evaluate("void setTimeout(() => { throw new Error('web-went-wrong'); })")
    until_logged(page.get_by_role("listitem").filter(has_text="Something in this page failed"), "web-went-wrong")
    broken = {"items": [{"name": "x", "nodes": None, "ready": 0, "cordoned": 0, "forward_ports": ""}], "revision": 1}
    page.route("**/api/v1/sites", lambda route: route.fulfill(json=broken))
    page.get_by_role("link", name="Sites and links").click()
    shown = page.locator(".pf-v6-c-alert").filter(has_text="This part of the page can't be shown")
    until_logged(shown, "null")
    page.unroute("**/api/v1/sites")
    page.get_by_role("link", name="Volumes").click()
    expect(page.get_by_role("heading", name="Volumes", level=1)).to_be_visible(timeout=SOON_MS)


@pytest.mark.slow
@pytest.mark.parametrize("status", [429, 503])
def test_a_page_gets_what_a_busy_server_refused_without_a_reload(
    page: Page, new_vm: NewVm, forgiven: list[str], status: int
) -> None:
    forgiven.append(str(status))
    new_vm(name="web-busy")
    log_in(page)
    problem = {"title": "Busy", "status": status, "code": "busy", "detail": "too much at once", "hint": "wait"}
    page.route("**/api/v1/vms?*", lambda route: route.fulfill(status=status, json=problem))
    page.get_by_label("Name begins with").fill("web-b")
    expect(page.get_by_text("too much at once").first).to_be_visible(timeout=SOON_MS)
    page.unroute("**/api/v1/vms?*")
    expect(page.get_by_role("link", name="web-busy")).to_be_visible(timeout=SOON_MS)
    expect(page.get_by_label("Name begins with")).to_have_value("web-b")


@pytest.mark.slow
def test_a_page_is_current_again_after_it_was_cut_off(
    page: Page, site: Platform, new_vm: NewVm, forgiven: list[str]
) -> None:
    """As after a laptop slept: without a reload, and without losing what was selected."""
    forgiven += [*CUT_OFF, "ERR_INTERNET_DISCONNECTED"]
    vm = new_vm(name="web-asleep")
    log_in(page)
    page.get_by_role("row").filter(has_text="web-asleep").get_by_role("checkbox").check()
    page.evaluate("window.loaded = 'once'")
    page.context.set_offline(True)
    expect(page.get_by_test_id("freshness")).to_contain_text("behind since", timeout=SOON_MS)
    site.client.request("PATCH", f"/api/v1/vms/{vm['id']}", {"name": "web-awake"})
    page.context.set_offline(False)
    expect(page.get_by_role("link", name="web-awake")).to_be_visible(timeout=SOON_MS)
    until_current(page)
    expect(page.get_by_role("row").filter(has_text="web-awake").get_by_role("checkbox")).to_be_checked()
    assert page.evaluate("window.loaded") == "once"


@pytest.mark.slow
def test_who_logs_out_in_one_tab_is_logged_out_in_the_other(page: Page, forgiven: list[str]) -> None:
    forgiven += CUT_OFF
    log_in(page)
    other = page.context.new_page()
    other.goto("/ui/vms/create")
    until_current(other)
    other.get_by_label("Name", exact=True).fill("web-typed")
    page.get_by_role("button", name="Log out").click()
    again = other.get_by_role("dialog", name="Log in again")
    expect(again).to_be_visible(timeout=SOON_MS)
    type_password(other)
    expect(again).to_be_hidden(timeout=SOON_MS)
    expect(other.get_by_label("Name", exact=True)).to_have_value("web-typed")


@pytest.mark.slow
def test_an_action_reaches_all_that_are_selected_and_ends_the_selection(
    page: Page, site: Platform, new_vm: NewVm
) -> None:
    vms = [new_vm(name=f"web-bulk-{letter}") for letter in "ab"]
    other = new_vm(name="web-bulk-c")
    for vm in (*vms, other):
        site.wait_state(vm["id"], "running")
    log_in(page)
    for vm in vms:
        page.get_by_role("row").filter(has_text=vm["name"]).get_by_role("checkbox").check()
    page.get_by_role("button", name="Kill").click()
    dialog = page.get_by_role("dialog")
    for vm in vms:
        expect(dialog).to_contain_text(vm["name"])
    expect(dialog).not_to_contain_text("web-bulk-c")
    dialog.get_by_role("button", name="Kill").click()
    expect(page.get_by_text("0 VMs selected")).to_be_visible(timeout=SOON_MS)
    for vm in vms:
        row = page.get_by_role("row").filter(has_text=vm["name"])
        expect(row.get_by_text("stopped", exact=True)).to_be_visible(timeout=SOON_MS)
    assert site.client.get("vms", other["id"])["status"]["state"] == "running"


def _poisoned(value: Any, depth: int = 0) -> Any:
    """Replace texts that people choose by hostile ones, all of them in turn."""
    if isinstance(value, dict):
        return {
            key: " ".join(HOSTILE) if key in POISONED
            else _poisoned(inner, depth + 1)
            for key, inner in value.items()
        }  # fmt: skip
    if isinstance(value, list):
        return [_poisoned(inner, depth + 1) for inner in value]
    return value


def request(site: Platform, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Ask for exactly this path: other clients tidy it up first."""
    config = site.client.config
    where = urlsplit(config.url)
    assert where.hostname is not None
    connection = http.client.HTTPSConnection(
        where.hostname, where.port, context=ssl.create_default_context(cadata=config.ca), timeout=30
    )
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_the_web_ui_is_served_compressed_for_ever_and_to_its_own_origin_only(site: Platform) -> None:
    status, headers, body = request(site, "/ui/")
    assert (status, headers["cache-control"]) == (200, "no-cache")
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    for name in re.findall(rb'(?:src|href)="(/ui/assets/[^"]+)"', body):
        status, headers, packed = request(site, name.decode(), Accept_Encoding="gzip, br")
        assert (status, headers["content-encoding"]) == (200, "br"), name
        assert headers["cache-control"] == "public, max-age=31536000, immutable"
        assert len(packed) < len(request(site, name.decode())[2])
        assert request(site, name.decode(), If_None_Match=headers["etag"])[0] == 304
    assert request(site, "/ui/vms/some-vm")[2] == body, "pages have addresses of their own"
    status, headers, _ = request(site, "/", Accept="text/html,*/*")
    assert (status, headers["location"]) == (303, "/ui/")
    assert request(site, "/")[0] == 404, "programs get no page"
    assert json.loads(request(site, "/ui/settings.json")[2]) == {"oidc": False}


@pytest.mark.parametrize(
    "path",
    ["/ui/assets/", "/ui/assets", "/ui/../pyproject.toml", "/ui/%2e%2e/web_ui.py", "/ui/..%2f..%2fapp.py",
     "/ui/assets/..%5c..%5capp.py", "/ui//etc/passwd", "/ui/%00", "/ui/index.html.br", "/ui/.git/config",
     "/ui/assets/../index.html", "/ui/index.html%0d%0aSet-Cookie:a=b", "/ui/" + "a" * 5000],
)  # fmt: skip
def test_no_path_leads_out_of_the_web_ui(site: Platform, path: str) -> None:
    status, headers, body = request(site, path)
    assert status in (400, 404, 414), path
    assert "set-cookie" not in headers and b"import" not in body


def test_the_web_ui_can_only_be_read(site: Platform) -> None:
    assert request(site, "/ui/", "POST")[0] == 405
    status, headers, body = request(site, "/ui/", "HEAD")
    assert status == 200 and body == b"" and int(headers["content-length"]) > 0


def test_a_page_learns_its_value_for_changes_again_after_a_reload(site: Platform, user: str, api: Api) -> None:
    done = api("POST", "/api/v1/login", {"user": user, "password": PASSWORD}, token=None)
    cookie = next(part for part in done.headers.getlist("set-cookie") if "-session=" in part).split(";")[0]
    shown = api("GET", "/api/v1/me", token=None, Cookie=cookie)
    assert shown.body["csrf"] == done.body["csrf"] and shown.headers["cache-control"] == "no-store"
    assert api("GET", "/api/v1/me").body["csrf"] is None, "a token has none"
    assert api("POST", "/api/v1/logout", token=None, Cookie=cookie, X_CSRF_Token=done.body["csrf"]).status == 204
