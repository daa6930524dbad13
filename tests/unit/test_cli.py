"""What the CLI prints and with which code it ends."""

from __future__ import annotations

import pytest
import typer

from novacron.cli import output
from novacron.cli.progress import share_done
from novacron.client import ApiError, Unreachable


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ApiError({"status": 400, "detail": "d", "field": "memory_mib"}), output.EXIT_USAGE),
        (ApiError({"status": 401, "detail": "d"}), output.EXIT_UNAUTHENTICATED),
        (ApiError({"status": 404, "detail": "d"}), output.EXIT_NOT_FOUND),
        (ApiError({"status": 409, "detail": "d"}), output.EXIT_REFUSED),
        (ApiError({"status": 503, "detail": "d"}), output.EXIT_UNREACHABLE),
        (Unreachable("no answer"), output.EXIT_UNREACHABLE),
        (TimeoutError("not there"), output.EXIT_TIMEOUT),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_kind_of_failure_has_its_exit_code(error: BaseException, code: int) -> None:
    with pytest.raises(typer.Exit) as caught, output.errors():
        raise error
    assert caught.value.exit_code == code


def test_an_error_names_the_field_and_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), output.errors():
        raise ApiError({"status": 400, "detail": "too small", "field": "memory_mib", "hint": "use 64 or more"})
    assert capsys.readouterr().err == "error: memory_mib: too small\nuse 64 or more\n"


def test_a_table_is_aligned_and_shows_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    output.table([{"a": "x", "b": None}, {"a": "long", "b": 1}], {"A": lambda r: r["a"], "B": lambda r: r["b"]})
    assert capsys.readouterr().out == "A     B\nx     -\nlong  1\n"


@pytest.mark.parametrize(
    ("count", "text"), [(None, "-"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB")]
)
def test_sizes_are_for_people(count: float | None, text: str) -> None:
    assert output.size(count) == text


def test_the_bar_stays_between_nothing_and_all() -> None:
    progress = {"total_bytes": 100, "remaining_bytes": 150}
    assert share_done({"phase": "transferring", "progress": progress}) == 0.0
    assert share_done({"phase": "completed", "progress": progress}) == 1.0
