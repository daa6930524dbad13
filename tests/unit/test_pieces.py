"""Files that go piece by piece: nobody gets round the audit log by beginning in the middle."""

from __future__ import annotations

import pytest

from novacron.api.edge import pieces
from novacron.api.edge.pieces import RecordedFiles

KEY = ("acc-1", "read", "vm-1", "/etc/shadow")


class Recorder(RecordedFiles):
    """Records what has to be."""

    def begins(self, key: tuple[str, ...], first: bool) -> bool:
        is_first = super().begins(key, first)
        if is_first:
            self.note(key)
        return is_first


def test_what_could_not_be_recorded_has_to_be_still() -> None:
    recorded = RecordedFiles()
    assert recorded.begins(KEY, first=True) and recorded.begins(KEY, first=False)
    recorded.note(KEY)
    assert not recorded.begins(KEY, first=False)


def test_a_file_is_recorded_once_and_whenever_it_is_begun() -> None:
    recorded = Recorder()
    assert (
        recorded.begins(KEY, first=True)
        and not recorded.begins(KEY, first=False)
        and not recorded.begins(KEY, first=False)
    )
    assert recorded.begins(KEY, first=True)


def test_a_piece_from_the_middle_is_recorded_if_nothing_was_before(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded, now = Recorder(), [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    assert recorded.begins(KEY, first=False)
    assert recorded.begins(("acc-2", *KEY[1:]), first=False), "by another caller"
    assert recorded.begins((*KEY[:3], "/etc/passwd"), first=False), "of another file"
    now[0] = pieces.KEPT_S + 1
    assert recorded.begins(KEY, first=False), "long after the last piece"


def test_what_is_remembered_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "KEPT_MAX", 2)
    recorded = Recorder()
    for name in "abc":
        assert recorded.begins((name,), first=False)
    assert recorded.begins(("a",), first=False), "the oldest is forgotten, and so recorded again"
