"""Keys that reach a guest through the web UI's display, and consoles in windows of their own."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from playwright.sync_api import Page, WebSocket, expect

from lab.platform import Platform
from tests.integration import test_web_ui
from tests.integration.test_web_ui import SOON_MS, NewVm, log_in, unsuitable, until_current

browser, forgiven, page, user = test_web_ui.browser, test_web_ui.forgiven, test_web_ui.page, test_web_ui.user
KEY_EVENT, EXTENDED_EVENT = 4, 255
CONTROL, ALT, SHIFT = 0xFFE3, 0xFFE9, 0xFFE1


def keys_in(sent: bytes) -> list[tuple[int, bool]]:
    """Return the keysyms that a display was sent, and whether they went down (RFC 6143, 7.5.4; QEMU's extension)."""
    if len(sent) == 12 and sent[0] == EXTENDED_EVENT:
        _, _, down, keysym, _ = struct.unpack(">BBHII", sent)
        return [(keysym, bool(down))]
    if len(sent) == 8 and sent[0] == KEY_EVENT:
        _, down, keysym = struct.unpack(">BBxxI", sent)
        return [(keysym, bool(down))]
    return []


@pytest.mark.slow
def test_keys_are_held_sent_together_and_typed_in_a_window_of_its_own(
    page: Page, site: Platform, new_vm: NewVm
) -> None:
    vm = new_vm(name="web-window")
    site.wait_state(vm["id"], "running")
    log_in(page)
    page.goto(f"/ui/vms/{vm['id']}")
    with page.expect_popup() as opened:
        page.get_by_role("button", name="Display in its own window").click()
    window = opened.value
    keys: list[tuple[int, bool]] = []

    def follow(socket: WebSocket) -> None:
        socket.on("framesent", lambda sent: keys.extend(keys_in(sent) if isinstance(sent, bytes) else []))

    window.on("websocket", follow)
    window.reload()  # a socket that was opened before is not followed
    expect(window.get_by_text("Connected. Click into the picture to type.")).to_be_visible(timeout=SOON_MS)
    assert window.title() == "web-window"

    def sent(expected: list[tuple[int, bool]]) -> None:
        for _ in range(100):
            if len(keys) >= len(expected):
                break
            window.wait_for_timeout(50)
        assert keys == expected
        keys.clear()

    window.get_by_role("button", name="Ctrl", exact=True).click()
    expect(window.get_by_role("button", name="Ctrl", exact=True)).to_have_attribute("aria-pressed", "true")
    sent([(CONTROL, True)])
    window.get_by_role("button", name="Ctrl", exact=True).click()
    sent([(CONTROL, False)])
    window.get_by_label("Send keys").select_option("Ctrl-Alt-F2")
    f2 = 0xFFBF
    sent([(CONTROL, True), (ALT, True), (f2, True), (f2, False), (ALT, False), (CONTROL, False)])
    window.get_by_label("Text to type into the guest").fill("aB\n")
    window.get_by_role("button", name="Type it").click()
    letters = [(0x61, True), (0x61, False), (SHIFT, True), (0x42, True), (0x42, False), (SHIFT, False)]
    sent([*letters, (0xFF0D, True), (0xFF0D, False)])
    found = unsuitable(window, "console")
    window.get_by_role("button", name="Alt", exact=True).click()
    sent([(ALT, True)])
    assert found == {}, json.dumps(found, indent=2)


@pytest.mark.slow
def test_pages_suit_languages_that_are_written_from_right_to_left(page: Page, site: Platform, new_vm: NewVm) -> None:
    vm = new_vm(name="web-right", power="stopped")
    log_in(page)
    page.add_init_script(
        "document.addEventListener('DOMContentLoaded', () => { document.documentElement.dir = 'rtl' })"
    )
    found: dict[str, Any] = {}
    for path in ("", "vms", f"vms/{vm['id']}", "nodes", "backups", "volumes", "sites", "networks"):
        page.goto(f"/ui/{path}")
        until_current(page)
        page.get_by_role("heading", level=1).first.wait_for()
        found |= unsuitable(page, f"from the right /{path}")
        if path == "vms":
            name = page.get_by_role("columnheader", name="Name").bounding_box()
            state = page.get_by_role("columnheader", name="State").bounding_box()
            assert name is not None and state is not None and name["x"] > state["x"], "the first column is on the right"
    assert found == {}, json.dumps(found, indent=2)
