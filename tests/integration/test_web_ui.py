"""The web UI in a browser, against real VMs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyotp
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Route, expect, sync_playwright

from lab.platform import Platform
from novacron.client import Client, Config

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
    const table = element.closest(".nc-table, .nc-output, .nc-figures, .nc-display");
    return scrolls && element.scrollWidth > element.clientWidth + 1 && !table;
}).map(element => `${element.tagName} ${element.className}: ${element.scrollWidth} > ${element.clientWidth}`)"""
EXPECTED = ("/api/v1/me",)
"""A browser asks who is logged in, and writes into its console that nobody is."""
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
        page.get_by_role("button", name="Do it now: Delete: web-made").click()
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
