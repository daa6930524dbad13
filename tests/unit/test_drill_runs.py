"""Drills of an installation: what becomes of answers that are not as they should be."""

from __future__ import annotations

import json

import pytest

from novacron.cli import drill_runs
from novacron.cli.drill_runs import DrillFailed, DrillHow, DrillRecorder, rehearsed
from novacron.client import Client, Config
from novacron.client.choices import DrillName

FOUND = {
    "backup": "7f3a91c2ab", "recover_s": 41.523, "loss_s": 3.2, "schema_version": "0054", "tables": {"a": 2, "b": 3},
    "marks": 1,
}  # fmt: skip
CLIENT = Client(Config("https://127.0.0.1:1", "none", ""))


def test_a_rehearsals_answer_is_measured_and_said() -> None:
    measured, said = rehearsed(json.dumps(FOUND))
    assert measured == {"recover_s": 41.52, "loss_s": 3.2}
    assert said == "backup 7f3a91c2, version 0054 of the schema, 2 tables, 5 rows, marks of 1 servers"


@pytest.mark.parametrize(
    "answer",
    ["", f"a warning\n{json.dumps(FOUND)}", "[]", "5", "{}", json.dumps(FOUND | {"tables": 5}),
     json.dumps(FOUND | {"recover_s": "soon"}), json.dumps(FOUND | {"backup": None})],
)  # fmt: skip
def test_an_answer_that_is_not_understood_fails_the_drill_in_words(answer: str) -> None:
    with pytest.raises(DrillFailed, match="run it by hand"):
        rehearsed(answer)


@pytest.mark.parametrize("defect", [ValueError("no time"), KeyError("proof"), TypeError("no text")])
def test_a_drill_that_gets_an_answer_without_sense_is_recorded_as_failed(
    monkeypatch: pytest.MonkeyPatch, defect: Exception
) -> None:
    def fail(recorder: DrillRecorder, client: Client, how: DrillHow) -> None:
        raise defect

    monkeypatch.setitem(drill_runs.DRILLS, DrillName.CERTIFICATES, fail)
    run = drill_runs.run(DrillName.CERTIFICATES, CLIENT, DrillHow())
    assert run["verdict"] == "failed" and type(defect).__name__ in run["error"]
