"""Rollouts: which step follows which, what ends one, how weights are written, what settings are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from novacron.cli.rollouts import app
from novacron.rollout import notices
from novacron.rollout.balancer import Traffic, with_weights
from novacron.rollout.gates import GateLimits, GateReading, failing, refusal, worse
from novacron.rollout.journal import OperatorAsk, OperatorRequest, RolloutJournal
from novacron.rollout.model import (
    NEXT_STATES,
    Colour,
    Rollout,
    RolloutError,
    RolloutState,
    StepFailed,
    Strategy,
    shares_of,
)
from novacron.rollout.options import RolloutOptions

LIMITS = GateLimits(0.01, 0.5, 0.005, 2.0, 20)
GOOD = GateReading(1.0, "2", 0.0, 0.02)
DEPLOYED = Path(__file__).parents[2] / "deploy/rollout"


def rollout(strategy: Strategy = Strategy.BLUE_GREEN) -> Rollout:
    shares = shares_of(strategy, "1,10,50,100", 900, 120)
    return Rollout(7, strategy, "2", Colour.GREEN, shares, 0.0, version_before="1")


def walked(of: Rollout) -> list[str]:
    found = []
    while (step := of.next_step) is not None:
        of.step = step
        found.append(step)
    return found


def test_a_canary_watches_each_share_and_ends_the_old_version_last() -> None:
    assert walked(rollout(Strategy.CANARY)) == [
        "install", "start", "health", "smoke", "share-1", "watch-1", "share-10", "watch-10", "share-50", "watch-50",
        "share-100", "watch-100", "drain", "stop",
    ]  # fmt: skip


def test_every_way_back_begins_with_the_old_versions_requests() -> None:
    for step in rollout(Strategy.CANARY).steps:
        back = rollout(Strategy.CANARY)
        back.step = step
        back.become(RolloutState.GOING_BACK)
        assert walked(back) == ["restore", "verify", "remove"]


def test_what_has_ended_changes_no_more_and_only_a_failure_can_be_tried_again_or_accepted() -> None:
    assert not NEXT_STATES[RolloutState.DONE] and not NEXT_STATES[RolloutState.ROLLED_BACK]
    ended = {RolloutState.DONE, RolloutState.ROLLED_BACK}
    assert NEXT_STATES[RolloutState.FAILED] == {RolloutState.GOING_BACK, *ended}
    done = rollout()
    done.become(RolloutState.DONE)
    with pytest.raises(RolloutError, match=r"rollout 7 is done: it can't become paused"):
        done.become(RolloutState.PAUSED)


@pytest.mark.parametrize("text", ["", "1,10", "0,100", "10,10,100", "50,10,100", "1,x,100", "1,200"])
def test_shares_that_do_not_rise_to_all_requests_are_refused(text: str) -> None:
    with pytest.raises(RolloutError, match="write it like 1,10,50,100"):
        shares_of(Strategy.CANARY, text, 1, 1)


def test_a_version_as_good_as_the_old_one_stays() -> None:
    assert refusal(GOOD, "2", LIMITS, settled=True) == ""
    assert worse(GOOD, GOOD, LIMITS) == ""


@pytest.mark.parametrize(
    ("new", "why"),
    [
        (GOOD._replace(errors=0.011), "1.1% of its requests fail"),
        (GOOD._replace(p95_s=0.51), "p95 is 510 ms"),
        (GOOD._replace(up=None), "no measurements"),
        (GOOD._replace(up=0.0), "can't reach"),
        (GOOD._replace(version="1"), "measures version 1 instead of 2"),
        (GOOD._replace(errors=None), "not seen a request"),
        (GOOD._replace(p95_s=None), "not seen a request"),
    ],
)
def test_a_version_that_is_bad_or_not_measured_goes(new: GateReading, why: str) -> None:
    assert why in refusal(new, "2", LIMITS, settled=True)


@pytest.mark.parametrize(
    ("new", "why"),
    [
        (GOOD._replace(errors=0.008), "of the old version's"),
        (GOOD._replace(p95_s=0.2), "the old version's 20 ms"),
    ],
)
def test_a_version_that_is_worse_than_the_old_one_is_noticed(new: GateReading, why: str) -> None:
    assert refusal(new, "2", LIMITS, settled=True) == ""
    assert why in worse(new, GOOD, LIMITS)


def test_measurements_may_be_missing_at_first_but_may_not_be_bad() -> None:
    nothing = GateReading(None, None, None, None)
    assert refusal(nothing, "2", LIMITS, settled=False) == worse(nothing, nothing, LIMITS) == ""
    assert refusal(nothing._replace(errors=0.5), "2", LIMITS, settled=False)


def test_a_slow_answer_below_a_tenth_of_a_second_ends_nothing() -> None:
    assert worse(GOOD._replace(p95_s=0.09), GOOD._replace(p95_s=0.001), LIMITS) == ""


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 500), st.integers(0, 500))
def test_haproxys_count_judges_what_came_since_the_share_began(answered: int, failed: int, more: int, bad: int) -> None:
    bad = min(bad, more)
    before, now = Traffic(answered, failed), Traffic(answered + more, failed + bad)
    assert bool(failing(before, now, LIMITS)) == (more >= 20 and bad / max(1, more) > 0.01)


def test_haproxys_count_begins_anew_with_haproxy() -> None:
    assert failing(Traffic(10_000, 0), Traffic(100, 50), LIMITS)
    assert failing(Traffic(100, 0), Traffic(100, 30), LIMITS), "connections that fail are answered by nobody"


def test_weights_are_written_into_the_deployed_configuration_and_nothing_else_is() -> None:
    before = (DEPLOYED / "haproxy.cfg").read_text()
    after = with_weights(before, ["api"], {Colour.BLUE: 90, Colour.GREEN: 10})
    changed = [(a, b) for a, b in zip(before.splitlines(), after.splitlines(), strict=True) if a != b]
    assert [(a.split()[1], b.split()[4]) for a, b in changed] == [("blue", "90"), ("green", "10")]
    assert with_weights(after, ["api"], {Colour.BLUE: 100, Colour.GREEN: 0}) == before
    all_three = with_weights(before, ["api", "nodes", "agents"], {Colour.BLUE: 0, Colour.GREEN: 100})
    assert all_three.count("weight 100") == all_three.count("weight 0") == 3


@pytest.mark.parametrize(
    "text", ["", "backend api\n  server blue 1:1 weight 1\n", "frontend api\n  server blue 1:1 weight 1\n"]
)
def test_a_configuration_without_both_servers_is_refused(text: str) -> None:
    with pytest.raises(StepFailed, match="backend api has no line: server"):
        with_weights(text, ["api"], {Colour.BLUE: 1, Colour.GREEN: 99})


def test_a_journal_gives_back_what_it_was_given(tmp_path: Path) -> None:
    journal = RolloutJournal(tmp_path / "rollouts")
    with journal.alone():
        written = rollout(Strategy.CANARY)
        written.note(1.0, "begun")
        journal.save(written)
        assert journal.last() == journal.get(7) == written
        assert journal.is_worked_on()
        with pytest.raises(RolloutError, match="works on a rollout already"), journal.alone():
            pass
    assert not journal.is_worked_on()


def test_a_request_is_for_one_rollout(tmp_path: Path) -> None:
    journal = RolloutJournal(tmp_path)
    journal.ask(OperatorRequest(7, OperatorAsk.ABORT, "ann"))
    assert journal.asked(6) is None
    asked = journal.asked(7)
    assert asked is not None and asked.by == "ann"
    journal.answered()
    assert journal.asked(7) is None


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    journal = RolloutJournal(tmp_path)
    journal.open()
    (tmp_path / "rollouts/000001.json").write_text('{"number": "x"}')
    with pytest.raises(RolloutError, match=r"000001\.json.*mend it"):
        journal.last()


def test_a_signature_depends_on_secret_time_and_body() -> None:
    signed = {
        notices.signature(*parts) for parts in (("a", "1", b"x"), ("b", "1", b"x"), ("a", "2", b"x"), ("a", "1", b"y"))
    }
    assert len(signed) == 4
    # printf '1.x' | openssl dgst -sha256 -hmac a
    assert notices.signature("a", "1", b"x") == (
        "sha256=9550562addac2d4ae7b1c9557df01cd8e8b594d9d7255b989f5ad16f446f7c95"
    )


def test_settings_that_can_be_seen_to_be_wrong_are_refused_before_anything_is_done(tmp_path: Path) -> None:
    open_to_all = tmp_path / "token"
    open_to_all.write_text("secret")
    open_to_all.chmod(0o644)
    for options, words in (
        (RolloutOptions(smoke=False, webhook="http://example.net"), "https"),
        (RolloutOptions(smoke=False, webhook="https://example.net"), "nobody could trust"),
        (RolloutOptions(token_file=open_to_all), "chmod o-r"),
        (RolloutOptions(), "--no-smoke"),
        (RolloutOptions(smoke=False, environment=["1.0"]), "1.2.0=/opt/one"),
        (RolloutOptions(smoke=False, server_settings="/etc/novacron/server.toml"), "both would be the same"),
    ):
        with pytest.raises(typer.BadParameter) as refused:
            options.check()
        assert words in refused.value.message


def test_a_colours_unit_is_the_servers_unit_but_for_where_its_files_are() -> None:
    unit = (DEPLOYED.parent / "debian/novacron-server.service").read_text()
    template = (DEPLOYED / "novacron-server@.service").read_text()
    lines, own_lines = ({line for line in text.splitlines() if line[:1] != "#"} for text in (unit, template))
    assert {line.partition("=")[0] for line in lines ^ own_lines} == {
        "Description", "Environment", "ExecStart", "StateDirectory", "SyslogIdentifier",
    }  # fmt: skip
    assert all(
        "%i" in line for line in template.splitlines() if line.partition("=")[0] in ("ExecStart", "StateDirectory")
    )


def test_the_deployed_settings_are_settings(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("x")
    given = ["--settings", str(DEPLOYED / "rollout.toml"), "--token-file", str(token), "--state-dir", str(tmp_path)]
    done = CliRunner().invoke(app, ["start", "--version", "2", *given])
    assert done.exit_code == 4 and "no version serves yet" in done.output, done.output


def test_what_is_wrong_in_a_settings_file_is_named_as_it_is_written_there(tmp_path: Path) -> None:
    file = tmp_path / "rollout.toml"
    file.write_text('health-trys = 3\nstep = "long"\ncheck-every = 0.1\n')
    done = CliRunner().invoke(app, ["start", "--version", "2", "--settings", str(file)])
    assert done.exit_code == 2
    assert "there is no setting health-trys; did you mean health-tries?" in done.output
    assert "step is a number" in done.output and "check-every: " in done.output


def test_commands_without_a_rollout_say_what_to_do(tmp_path: Path) -> None:
    settings = ["--state-dir", str(tmp_path)]
    for arguments, words in (
        (["abort", *settings, "--no-smoke"], "novacron rollout rollback"),
        (["resume", *settings, "--no-smoke"], "no rollout is under way"),
        (["pause", *settings], "no rollout is under way"),
        (["start", "--version", "2", *settings, "--no-smoke"], "novacron rollout begin"),
        (["start", "--version", "a b", *settings, "--no-smoke"], "is no version"),
        (["start", "--version", "2", "--strategy", "canary", *settings, "--no-smoke"], "prometheus: "),
    ):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 4 and words in done.output, done.output
