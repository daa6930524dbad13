"""Pages of the web UI outlive what happens to the server, the session and the network."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Locator, Page, expect

from lab.platform import Platform
from tests.integration import test_web_ui
from tests.integration.test_web_ui import SOON_MS, USER, NewVm, log_in, type_password, until_current

browser, forgiven, page, user = test_web_ui.browser, test_web_ui.forgiven, test_web_ui.page, test_web_ui.user
CUT_OFF = ("/api/v1/watch", "ERR_CONNECTION", "401")
"""What a browser writes into its console while the server is away, or when a session has ended."""


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
