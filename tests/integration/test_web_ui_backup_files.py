"""The files of a backup are found and downloaded in a browser, whatever a guest has called them."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from lab.platform import Platform
from tests.integration import test_backup_files, test_web_ui
from tests.integration.test_encryption import import_private
from tests.integration.test_web_ui import HOSTILE, SOON_MS, USER, NewVm, log_in, log_in_with_link, unsuitable
from tests.support.vm_backups import NewRepository, back_up

browser, forgiven, page, user = test_web_ui.browser, test_web_ui.forgiven, test_web_ui.page, test_web_ui.user
disk = test_backup_files.disk
BIG = random.Random(5).randbytes((5 << 20) + 3)  # it comes in several pieces
NAMES = [name.replace("/", "%").replace("\x00", "").replace("\x1b", "") for name in HOSTILE]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount, as agents do it")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What lies on the guest's disk."""
    root = tmp_path_factory.mktemp("files")
    (root / "etc").mkdir()
    (root / "etc" / "big.bin").write_bytes(BIG)
    (root / HOSTILE[0]).mkdir()
    for name in NAMES:
        (root / HOSTILE[0] / name.replace("\x07", "")).write_text(name)
    return root


def test_a_file_of_a_backup_is_found_and_downloaded_and_hostile_names_are_text(
    page: Page, site: Platform, new_vm: NewVm, new_repository: NewRepository, new_name: Callable[[], str], disk: Path,
    tmp_path: Path, user: str,
) -> None:  # fmt: skip
    image = new_name()
    import_private(site, image, disk.read_bytes(), "raw", tmp_path)
    vm = new_vm(name="web-files", image=image, node="host-a", power="stopped")
    site.client.wait("vms", vm["id"], lambda now: now is not None and now["status"]["state"] == "stopped", 60)
    backup = back_up(site, vm, new_repository())
    log_in_with_link(page, site, "/ui/backups")
    page.get_by_role("button", name=f"Files: web-files {backup['id']}").click()
    expect(page.get_by_role("table", name="File systems")).to_contain_text("root; rm", timeout=SOON_MS)
    page.get_by_role("link", name="msdos1").click()
    page.get_by_role("link", name="etc/", exact=True).click()
    expect(page).to_have_url(re.compile(r"system=msdos1&path=%2Fetc$"))
    page.reload()
    with page.expect_download(timeout=SOON_MS) as saved:
        page.get_by_role("button", name="Download: big.bin").click()
    assert saved.value.suggested_filename == "big.bin"
    assert Path(saved.value.path()).read_bytes() == BIG
    page.get_by_role("button", name="Directory above").click()
    page.get_by_role("link", name=f"{HOSTILE[0]}/", exact=True).click()
    for name in NAMES[:3]:
        expect(page.get_by_role("cell", name=name, exact=True)).to_be_visible(timeout=SOON_MS)
    expect(page.get_by_role("cell", name="\ufffdtxt.exe]0;title", exact=True)).to_be_visible()
    page.get_by_label("Name contains", exact=True).fill("onerror")
    expect(page.get_by_role("button", name=re.compile("^Download:"))).to_have_count(1)
    with page.expect_download(timeout=SOON_MS) as saved:
        page.get_by_role("button", name=f"Download: {HOSTILE[0]}").click()
    assert saved.value.suggested_filename == "_img src=x onerror=_window.hit='img'__"
    assert Path(saved.value.path()).read_text() == HOSTILE[0]
    found = unsuitable(page, "files of a backup")
    assert page.evaluate("window.hit") is None and found == {}
    records = [
        record for record in site.client.list("audit", limit=50) if record["path"].endswith(f"{backup['id']}/file")
    ]
    assert {record["actor"] for record in records} == {USER}, records


@pytest.mark.slow
def test_what_a_server_says_of_files_is_text_and_a_file_without_end_is_given_up(page: Page) -> None:
    """Names with what no file system would hold; a piece that is always followed by another."""
    log_in(page)
    listing = {"file_system": "disk", "path": "/", "truncated": True, "entries": [
        {"name": name, "is_directory": False, "size_bytes": 1, "modified_at": None} for name in (*HOSTILE, "endless")
    ]}  # fmt: skip
    systems = [{"name": HOSTILE[2], "kind": HOSTILE[0], "label": HOSTILE[5], "uuid": HOSTILE[6], "size_bytes": 1}]
    backup = {"id": "x", "vm": "y", "vm_name": HOSTILE[1], "project": "default", "phase": "kept",
              "created_at": "2026-12-01T00:00:00Z"}  # fmt: skip
    answers = {"x": backup, "file-systems": systems, "files": listing, "file": {"data": "YWI=", "end": False}}

    def answer(route: Route) -> None:
        route.fulfill(json=answers[route.request.url.partition("?")[0].rpartition("/")[2]])

    page.route(re.compile(r"/api/v1/backups/x(/|$)"), answer)
    page.goto("/ui/backups/x/files")
    expect(page.get_by_role("cell", name=HOSTILE[1], exact=True)).to_be_visible(timeout=SOON_MS)
    expect(page.get_by_text("The directory has more files than are listed here.")).to_be_visible()
    page.get_by_role("button", name="Download: endless").click()
    expect(page.get_by_role("button", name="Download: javascript:window.hit='link'")).to_be_disabled()
    page.get_by_role("button", name="Give up").click()
    expect(page.get_by_text("endless: given up")).to_be_visible()
    expect(page.get_by_role("button", name="Download: endless")).to_be_enabled()
    assert page.evaluate("window.hit") is None
