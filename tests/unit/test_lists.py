"""Lists: filters, order, limits, watching, wide tables, JSONPath, and times in a zone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

import pytest
import typer

from novacron.cli import json_paths, lists, output
from novacron.cli.lists import Listing, Watch, condition
from novacron.cli.output import Columns, Object, OutputFormat

COLUMNS: Columns = {
    "NAME": lambda item: item["name"],
    "STATE": lambda item: item["status"]["state"],
    "AGE": lambda item: output.age(item["created_at"]),
}
MORE: Columns = {"SIZE": lambda item: item["size"]}


def machine(name: str, state: str = "running", size: int | None = 1, **fields: object) -> Object:
    created = "2026-11-29T08:00:00Z"
    return {"id": f"id-{name}", "name": name, "status": {"state": state}, "size": size, "created_at": created, **fields}


MACHINES = [machine("web", size=10), machine("db", "stopped", 9, tags=["shop", "old"]), machine("cache", size=None)]


def names(listing: Listing, capsys: pytest.CaptureFixture[str], items: list[Object] = MACHINES) -> list[str]:
    listing.show_read(lambda limit: items[:limit], COLUMNS, MORE)
    return capsys.readouterr().out.split()


@pytest.mark.parametrize(
    ("filters", "shown"),
    [
        (["status.state=running"], ["web", "cache"]),
        (["state!=running"], ["db"]),
        (["state=run*", "name=w*"], ["web"]),
        (["tags=shop"], ["db"]),
        (["size="], ["cache"]),
        (["status.nothing=x"], []),
    ],
)
def test_lists_are_filtered_by_fields_and_columns(
    filters: list[str], shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    items = [{"tags": [], **item} for item in MACHINES]
    assert names(Listing(filter=filters, output=OutputFormat.NAME), capsys, items) == shown


@pytest.mark.parametrize("text", ["state", "=x", "colour=red"])
def test_a_filter_that_can_match_nothing_is_said(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        Listing(filter=[text]).show_read(lambda limit: MACHINES, COLUMNS)


def test_truth_has_two_names() -> None:
    assert condition("ha=yes").holds({"ha": True}, {}) and condition("ha=false").holds({"ha": False}, {})


def test_lists_are_ordered_and_limited_after_what_they_are_filtered_by(capsys: pytest.CaptureFixture[str]) -> None:
    by_size = Listing(sort="-size", limit=2, output=OutputFormat.NAME)
    assert names(Listing(sort="size", output=OutputFormat.NAME), capsys) == ["db", "web", "cache"]
    assert names(by_size, capsys) == ["cache", "web"]
    assert names(Listing(filter=["state=running"], limit=1, output=OutputFormat.NAME), capsys) == ["web"]


def test_only_a_list_that_needs_nothing_else_is_limited_by_the_server() -> None:
    limits: list[int | None] = []

    def read(limit: int | None) -> list[Object]:
        limits.append(limit)
        return []

    Listing(limit=5, output=OutputFormat.NAME).show_read(read, COLUMNS)
    Listing(limit=5, filter=["name=x"], output=OutputFormat.NAME).show_read(read, COLUMNS)
    assert limits == [5, None]


def test_a_watch_shows_what_is_new_has_changed_and_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    watch = Watch(COLUMNS, None, OutputFormat.TABLE)
    watch.look([machine("web"), machine("db")], first=True)
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        ["NAME", "STATE"], ["web", "running"], ["db", "running"],
    ]  # fmt: skip
    watch.look([machine("web"), machine("db")])
    assert capsys.readouterr().out == "", "an age that grows is no change"
    watch.look([machine("web", "stopped"), machine("new")])
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in said] == [["web", "stopped"], ["new", "running"], ["db:", "gone"]]


def test_programs_watch_objects_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    watch = Watch(COLUMNS, None, OutputFormat.JSON)
    watch.look([machine("web")], first=True)
    watch.look([])
    first, gone = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first == machine("web") and gone == {"key": "id-web", "name": "web", "deleted": True}


def test_a_watch_goes_on_until_it_is_interrupted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: Iterator[list[Object]] = iter([[machine("web")], [machine("web", "stopped")]])
    monkeypatch.setattr("novacron.cli.lists.WATCH_INTERVAL_S", 0)

    def read(limit: int | None) -> list[Object]:
        try:
            return next(answers)
        except StopIteration:
            raise KeyboardInterrupt from None

    with pytest.raises(typer.Exit) as ended, output.errors():
        Listing(watch=True).show_read(read, COLUMNS)
    assert ended.value.exit_code == output.EXIT_INTERRUPTED
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_wide_table_has_more_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(output.TIME_ZONE, "UTC")
    output.time_zone.cache_clear()
    output.rows([machine("web", project="shop", tags=[])], COLUMNS, OutputFormat.WIDE, MORE)
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["NAME", "STATE", "AGE", "SIZE", "PROJECT", "TAGS", "ID", "CREATED"]
    assert line.split()[-5:] == ["-", "id-web", "2026-11-29", "08:00:00", "UTC"]
    output.time_zone.cache_clear()


@pytest.mark.parametrize(
    ("expression", "shown"),
    [
        ("$[*].name", "web\ndb\n"), ("{[*].status.state}", "running\nrunning\n"), ("[0].size", "1\n"),
        ("$[?@.name=='db'].status", '{"state": "running"}\n'), ("$[9]", ""),
    ],
)  # fmt: skip
def test_programs_get_parts_of_answers(expression: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    output.rows([machine("web"), machine("db")], COLUMNS, OutputFormat(f"jsonpath={expression}"))
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize("expression", ["$[", "$[?(@", "[" * 3000, "$..[", "'"])
def test_what_is_no_jsonpath_is_said_before_anything_is_done(expression: str) -> None:
    with pytest.raises(typer.BadParameter, match="not a JSONPath expression"):
        json_paths.check(expression)
    with pytest.raises(typer.BadParameter):
        OutputFormat(f"jsonpath={expression}")


@pytest.mark.parametrize(
    ("zone", "shown"),
    [("UTC", "2026-07-01 12:00:00 UTC"), ("Europe/Berlin", "2026-07-01 14:00:00 +0200"),
     ("Asia/Kathmandu", "2026-07-01 17:45:00 +0545")],
)  # fmt: skip
def test_times_are_those_of_a_zone(zone: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(output.TIME_ZONE, zone)
    output.time_zone.cache_clear()
    assert output.when("2026-07-01T12:00:00.123456Z") == shown and output.when(None) is None
    output.time_zone.cache_clear()


@pytest.mark.parametrize("zone", ["Mars/Olympus", "../../etc/passwd", "\x00", "é", "/etc"])
def test_a_zone_that_there_is_not_is_said(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.environ", {output.TIME_ZONE: zone})
    output.time_zone.cache_clear()
    with pytest.raises(typer.BadParameter, match="no time zone"):
        output.time_zone()
    output.time_zone.cache_clear()


LOG = [{"seq": number, "name": f"e{number}", "kind": "vm" if number % 2 else "node"} for number in range(9, 0, -1)]
LOG_COLUMNS: Columns = {"NAME": lambda entry: entry["name"], "KIND": lambda entry: entry["kind"]}


@pytest.mark.parametrize(
    ("listing", "shown"),
    [
        (Listing(limit=3), ["e9", "e8", "e7"]),
        (Listing(limit=2, filter=["kind=node"]), ["e8", "e6"]),
        (Listing(limit=3, sort="name"), ["e7", "e8", "e9"]),
    ],
)
def test_a_log_is_limited_before_it_is_ordered(
    listing: Listing, shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    listing = dataclasses.replace(listing, output=OutputFormat.NAME)
    listing.show_log(lambda: iter(LOG), LOG_COLUMNS)
    assert capsys.readouterr().out.split() == shown


def test_watching_a_log_shows_each_new_entry_once_and_reads_no_further_than_the_last(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("novacron.cli.lists.WATCH_INTERVAL_S", 0)
    taken = [0]
    newest = iter([3, 3, 7, 9])

    def read() -> Iterator[Object]:
        last = next(newest, None)
        if last is None:
            raise KeyboardInterrupt
        for entry in LOG[len(LOG) - last :]:
            taken[0] += 1
            yield entry

    with pytest.raises(KeyboardInterrupt):
        Listing(limit=2, watch=True, filter=["kind=vm"], output=OutputFormat.NAME).show_log(read, LOG_COLUMNS)
    assert capsys.readouterr().out.split() == ["e1", "e3", "e5", "e7", "e9"]
    assert taken[0] == 3 + 1 + 5 + 3
    assert Listing(limit=2, watch=True).page is None and Listing(limit=2).page == 2


def test_a_stream_is_filtered_as_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    Listing(filter=["name!=e*5"], output=OutputFormat.JSON).show_stream(lambda: iter(LOG[3:6]), LOG_COLUMNS)
    assert [json.loads(line)["seq"] for line in capsys.readouterr().out.splitlines()] == [6, 4]


@pytest.mark.parametrize(
    "ordered",
    [
        ["", "web-2", "web-10", "web-10a"],
        ["256 MiB", "1024 MiB", "1.5 GiB", "2.0 GiB"],
        ["59s", "2m", "1h", "3d"],
        [None, 1, 2.5, 10],
        ["5", "x5", "x10"],
    ],
)
def test_values_are_ordered_by_what_they_mean(ordered: list[object]) -> None:
    items: list[Object] = [{"name": str(number), "value": value} for number, value in enumerate(ordered)]
    shown = [item["value"] for item in lists._sorted(reversed(items), "value", {})]
    assert shown == [value for value in ordered if isinstance(value, int | float)] + [
        value for value in ordered if not isinstance(value, int | float)
    ]
