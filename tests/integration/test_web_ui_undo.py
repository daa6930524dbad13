"""The web UI holds back what can't be undone, so that it can be."""

from __future__ import annotations

import re
from typing import Any

import pytest
from playwright.sync_api import Dialog, Page, Request, expect

from lab.platform import Platform, until
from tests.integration import test_web_ui
from tests.integration.test_web_ui import SOON_MS, NewVm, log_in, until_current

browser, forgiven, page, user = test_web_ui.browser, test_web_ui.forgiven, test_web_ui.page, test_web_ui.user


def changes(page: Page) -> list[str]:
    """Return what the browser sends from now on to change something, as it is sent."""
    sent: list[str] = []

    def heard(request: Request) -> None:
        if request.method != "GET":
            sent.append(f"{request.method} {request.url.partition('/api/v1')[2]}")

    page.context.on("request", heard)
    return sent


def ask_to_delete(page: Page, word: str) -> None:
    page.get_by_role("button", name="Delete", exact=True).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label(f"Type {word} to confirm").fill(word)
    dialog.get_by_role("button", name="Delete", exact=True).click()
    expect(dialog).to_be_hidden()


def exists(site: Platform, vm: dict[str, Any]) -> bool:
    return any(one["id"] == vm["id"] and not one["deleting"] for one in site.client.list("vms"))


def test_a_deletion_is_held_back_and_undone_and_ends_with_its_page(page: Page, site: Platform, new_vm: NewVm) -> None:
    """Waits for one deletion of 10 s to be sent: those before it would have been sent by then."""
    first, second = (new_vm(name=f"web-undo-{letter}", power="stopped") for letter in "ab")
    log_in(page)
    sent = changes(page)
    for vm in (first, second):
        page.get_by_role("row").filter(has_text=vm["name"]).get_by_role("checkbox").check()
    ask_to_delete(page, "delete 2")
    held = page.get_by_role("listitem").filter(has_text="Delete: 2 VMs")
    expect(held.get_by_role("timer")).to_have_text(re.compile(r"Sent in ([1-9]|10) s"))
    expect(held).to_contain_text("web-undo-a, web-undo-b")
    page.keyboard.press("u")
    expect(page.get_by_text("Delete: 2 VMs: undone, nothing was sent")).to_be_visible()
    page.get_by_role("link", name="web-undo-a").click()
    ask_to_delete(page, "web-undo-a")
    expect(page.get_by_role("button", name="Delete", exact=True)).to_be_disabled()
    page.get_by_role("link", name="Nodes").click()
    expect(page.get_by_role("button", name="Undo: Delete: web-undo-a")).to_be_visible()
    asked: list[str] = []

    def leave(dialog: Dialog) -> None:
        asked.append(dialog.type)
        dialog.accept()

    page.on("dialog", leave)
    page.goto(f"/ui/vms/{second['id']}")
    until_current(page)
    assert asked == ["beforeunload"], "the browser asks before a page is left that holds something back"
    ask_to_delete(page, "web-undo-b")
    expect(page.get_by_text("VM web-undo-b has been deleted.")).to_be_visible(timeout=SOON_MS)
    assert sent == [f"DELETE /vms/{second['id']}"]
    assert exists(site, first)


@pytest.mark.slow
def test_a_detached_volume_is_held_back_and_a_logout_ends_that(page: Page, site: Platform, new_vm: NewVm) -> None:
    vm = new_vm(name="web-undo-disk", power="stopped")
    client = site.client
    until(lambda: client.get("vms", vm["id"])["node"], "the VM has a node")
    node = client.get("vms", vm["id"])["node"]
    volume = client.request("POST", "/api/v1/volumes", {"name": "web-undo", "size_mib": 16, "node": node})
    try:
        until(lambda: client.get("volumes", volume["id"])["phase"] == "ready", "the volume is there")
        client.request("POST", f"/api/v1/volumes/{volume['id']}/actions/attach", {"vm": vm["id"]})
        log_in(page)
        page.goto("/ui/volumes")
        sent = changes(page)
        detach = page.get_by_role("button", name="Detach: web-undo", exact=True)
        confirm = page.get_by_role("dialog").get_by_role("button", name="Detach", exact=True)
        detach.click()
        confirm.click()
        page.get_by_role("button", name="Undo: Detach: web-undo").click()
        detach.click()
        confirm.click()
        page.get_by_role("button", name="Do it now: Detach: web-undo").click()
        expect(page.get_by_role("button", name="Attach: web-undo", exact=True)).to_be_visible(timeout=SOON_MS)
        assert sent == [f"POST /volumes/{volume['id']}/actions/detach"]
        page.get_by_role("button", name="Delete: web-undo", exact=True).click()
        page.get_by_label("Type web-undo to confirm").fill("web-undo")
        page.get_by_role("dialog").get_by_role("button", name="Delete", exact=True).click()
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("Password")).to_be_visible(timeout=SOON_MS)
        assert sent[1:] == ["POST /logout"]
    finally:
        site.cli("volume", "detach", "web-undo", check=False)
        client.request("DELETE", f"/api/v1/volumes/{volume['id']}")
