"""Readers of the web UI choose the columns of lists and what they are filtered by, and share both."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from lab.platform import Platform
from tests.integration import test_web_ui
from tests.integration.test_web_ui import SOON_MS, USER, NewVm, log_in, unsuitable, until_current

browser, forgiven, page, user = test_web_ui.browser, test_web_ui.forgiven, test_web_ui.page, test_web_ui.user
USUAL = ["Name", "State", "Node", "Project", "Image", "vCPUs", "Memory", "Created"]


def titles(page: Page, table: str) -> list[str]:
    heads = page.get_by_role("table", name=table).get_by_role("columnheader")
    heads.first.wait_for(timeout=SOON_MS)
    return [text for head in heads.all_inner_texts() if (text := re.sub(r"[▲▼]", "", head).strip())]


def test_columns_are_chosen_ordered_kept_shared_and_saved_as_csv(page: Page, new_vm: NewVm) -> None:
    vm = new_vm(name="web-columns", power="stopped", tags=["blue", "@sum"])
    log_in(page)
    page.goto("/ui/vms?name=web-col")
    assert titles(page, "Virtual machines") == USUAL
    page.get_by_role("button", name="Columns: Virtual machines").click()
    dialog = page.get_by_role("dialog")
    for unwanted in USUAL[2:]:
        dialog.get_by_label(unwanted, exact=True).uncheck()
    dialog.get_by_label("Tags", exact=True).check()
    dialog.get_by_role("button", name="Move Tags forward").press("Enter")
    dialog.get_by_role("button", name="Close").last.click()
    own = ["Name", "Tags", "State"]
    assert titles(page, "Virtual machines") == own
    shared = page.url
    assert "name=web-col" in shared and "vm-columns=name%2Ctags%2Cstate" in shared
    with page.expect_download() as saved:
        page.get_by_role("button", name="CSV: Virtual machines").click()
    lines = Path(saved.value.path()).read_text().splitlines()
    assert lines[0] == "Name,Tags,State" and lines[1].startswith(f'{vm["name"]},"'), lines
    page.goto("/ui/vms")
    assert titles(page, "Virtual machines") == own, "they are kept in this browser"
    expect(page).to_have_url(re.compile("vm-columns="))
    page.goto("/ui/vms?vm-columns=nothing,__proto__,state,state,<b>")
    assert titles(page, "Virtual machines") == ["State"], "an address may say anything"
    _look_from_elsewhere(page, shared, own)
    page.get_by_role("button", name="Columns: Virtual machines").click()
    page.get_by_role("button", name="The usual columns").click()
    page.get_by_role("dialog").get_by_role("button", name="Close").last.click()
    assert titles(page, "Virtual machines") == USUAL
    assert "columns" not in page.url


def _look_from_elsewhere(page: Page, shared: str, own: list[str]) -> None:
    """Another user's columns count for nobody else; a shared link shows its own, and changes nothing for later."""
    assert page.evaluate("Object.keys(localStorage).filter(key => key.includes('columns'))") == [
        f"novacron-columns-{USER}-vm"
    ]
    page.evaluate("localStorage.clear(); localStorage.setItem('novacron-columns-another-vm', 'id')")
    page.goto(shared)
    until_current(page)
    assert titles(page, "Virtual machines") == own
    page.goto("/ui/vms")
    assert titles(page, "Virtual machines") == USUAL
    page.goto(shared)


def test_a_list_is_filtered_by_the_server_and_follows_what_changes(page: Page, site: Platform, new_vm: NewVm) -> None:
    new_vm(name="web-filter-a", power="stopped", tags=["blue", "old"])
    other = new_vm(name="web-filter-b", power="stopped", tags=["blue"])
    log_in(page)
    page.get_by_role("link", name="web-filter-b").wait_for(timeout=SOON_MS)
    page.get_by_role("button", name="Filter: Virtual machines").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Tag").fill("blue,old")
    dialog.get_by_label("Image").fill("tiny")
    dialog.get_by_role("button", name="Filter", exact=True).click()
    expect(page.get_by_role("link", name="web-filter-b")).to_have_count(0, timeout=SOON_MS)
    expect(page.get_by_role("link", name="web-filter-a")).to_be_visible()
    expect(page).to_have_url(re.compile(r"tag=blue%2Cold"))
    site.client.request("PATCH", f"/api/v1/vms/{other['id']}", {"tags": ["blue", "old"]})
    expect(page.get_by_role("link", name="web-filter-b")).to_be_visible(timeout=SOON_MS)
    page.reload()
    page.get_by_role("link", name="web-filter-b").wait_for(timeout=SOON_MS)
    page.get_by_role("button", name="Take out the filter: Tag").click()
    expect(page).to_have_url(re.compile(r"\?image=tiny$"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "title", "field"),
    [
        ("nodes", "Nodes", "Tag"),
        ("volumes", "Volumes", "VM"),
        ("images", "Images", "Tag"),
        ("backups", "Backups", "Policy"),
        ("migrations", "Migrations", "VM"),
    ],
)
def test_each_list_has_the_filters_of_the_server(
    page: Page, path: str, title: str, field: str, forgiven: list[str]
) -> None:
    forgiven += ["404"]  # a VM or a policy that does not exist is said
    log_in(page)
    page.goto(f"/ui/{path}")
    until_current(page)
    page.get_by_role("button", name=f"Filter: {title}").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label(field).fill("nothing-is-like-that")
    dialog.get_by_role("button", name="Filter", exact=True).click()
    said = page.get_by_role("region", name=title, exact=True).get_by_text(
        re.compile("Nothing here|There is no image|can't be shown")
    )
    expect(said.first).to_be_visible(timeout=SOON_MS)


@pytest.mark.slow
def test_lists_of_one_page_have_columns_of_their_own(page: Page, site: Platform) -> None:
    log_in(page)
    page.goto("/ui/nodes?node-columns=tags,name&drain-columns=phase")
    assert titles(page, "Nodes") == ["Tags", "Name", "What can be done"]
    page.get_by_role("button", name="Columns: Nodes").click()
    found = unsuitable(page, "columns")
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Kernel", exact=True).check()
    dialog.get_by_role("button", name="Close").last.click()
    assert titles(page, "Nodes") == ["Tags", "Name", "Kernel", "What can be done"]
    assert "drain-columns=phase" in page.url, "the other list's are left alone"
    for path, table in (("images", "Images"), ("volumes", "Pools"), ("audit", "Audit log")):
        page.goto(f"/ui/{path}")
        page.get_by_role("button", name=f"Columns: {table}").click()
        box = page.get_by_role("dialog").get_by_role("checkbox").first
        box.uncheck()
        page.get_by_role("dialog").get_by_role("button", name="Close").last.click()
        expect(page).to_have_url(re.compile("-columns="))
    assert found == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "table", "name"),
    [
        ("vms", "Virtual machines", "sort"),
        ("nodes", "Nodes", "sort"),
        ("nodes", "Drains", "drain-sort"),
        ("volumes", "Volumes", "sort"),
        ("migrations", "Migrations", "sort"),
        ("backups", "Backups", "sort"),
        ("backups", "Backup policies", "policy-sort"),
        ("backups", "Backup repositories", "repository-sort"),
        ("images", "Imports", "import-sort"),
        ("images", "Exports of VMs", "export-sort"),
        ("drills", "Runs of drills", "drill-sort"),
    ],
)
def test_the_server_sorts_each_list_by_the_columns_that_offer_it(page: Page, path: str, table: str, name: str) -> None:
    """A field that the server does not sort by is answered with 400, of which the browser's console complains."""
    log_in(page)
    page.goto(f"/ui/{path}")
    until_current(page)
    region = page.get_by_role("table", name=table, exact=True)
    never_empty = table == "Nodes"
    shown = region if never_empty else region.or_(page.get_by_text("Nothing here"))
    expect(shown.first).to_be_visible(timeout=SOON_MS)
    if region.count() == 0:
        return  # an empty list has no heads
    for head in region.get_by_role("columnheader").filter(has=page.get_by_role("button")).all():
        head.get_by_role("button").click()
        expect(head).to_have_attribute("aria-sort", re.compile("ascending|descending"))
        expect(page).to_have_url(re.compile(rf"[?&]{name}=-?[a-z_.]+"))


def test_nodes_are_sorted_by_a_column_and_the_order_is_shared(page: Page, site: Platform) -> None:
    names = sorted(node["name"] for node in site.client.request("GET", "/api/v1/nodes")["items"])
    log_in(page)
    page.goto("/ui/nodes")
    cells = page.get_by_role("table", name="Nodes", exact=True).locator("[role=row] > [role=cell]:first-child")
    expect(cells).to_have_text(names, timeout=SOON_MS)
    page.get_by_role("columnheader", name="Name").first.get_by_role("button").click()
    expect(cells).to_have_text(names[::-1], timeout=SOON_MS)
    expect(page).to_have_url(re.compile(r"\?sort=-name$"))
    page.reload()
    expect(cells).to_have_text(names[::-1], timeout=SOON_MS)
    page.goto("/ui/nodes?sort=<b>&drain-sort=nothing")
    expect(cells).to_have_text(names, timeout=SOON_MS)
