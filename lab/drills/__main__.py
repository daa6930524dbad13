"""``script/drill``: run drills of the lab, and keep what they measured."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import msgspec

from lab.drills import catalogue, execution, practice, results
from lab.drills.model import LabDrill, LabDrillRun
from lab.platform import clean_up_when_ended
from novacron.model.drill import DrillVerdict
from novacron.terminal import say


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="script/drill", description="Run drills on a lab of its own.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("name", nargs="?", metavar="NAME", help="drill to run, or practice; see --list")
    what.add_argument("--all", action="store_true", help="run all drills, one after another")
    what.add_argument("--list", action="store_true", help="list drills, with what they promise")
    what.add_argument("--safe", action="store_true", help="run those that neither mount nor start guests")
    what.add_argument("--page", action="store_true", help=f"write {results.PAGE.name} anew, and run nothing")
    parser.add_argument("exercise", nargs="?", help=f"with practice: what to mend ({', '.join(practice.NAMES)})")
    parser.add_argument("--minutes", type=float, default=30.0, help="with practice: how long to wait")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the run there, as JSON; only for one drill")
    parser.add_argument("--record", action="store_true", help="keep the run in the repository, and write its page anew")
    return parser


def main(words: list[str] | None = None) -> int:
    parser = arguments()
    asked = parser.parse_args(words)
    if asked.list:
        say(results.calendar() + "\n\n## Practice\n")
        for exercise in practice.ALL:
            say(f"* `practice {exercise.name}`: {exercise.what}")
        return 0
    if asked.page:
        results.write_page()
        return 0
    clean_up_when_ended()
    if asked.name == "practice":
        return _practise(parser, asked.exercise, asked.minutes * 60)
    if asked.json and not asked.name:
        parser.error("--json takes the run of one drill: name one, or use --record")
    chosen = _chosen(asked)
    if not chosen:
        parser.error(f"there is no drill {asked.name!r}; there are: {', '.join(catalogue.NAMES)}")
    return _run(chosen, asked.json, asked.record)


def _chosen(asked: argparse.Namespace) -> tuple[LabDrill, ...]:
    if asked.all or asked.safe:
        return tuple(drill for drill in catalogue.ALL if asked.all or not (drill.needs_root or drill.needs_guest))
    return tuple(drill for drill in catalogue.ALL if drill.name == asked.name)


def _practise(parser: argparse.ArgumentParser, name: str | None, limit_s: float) -> int:
    exercise = practice.named(name or "")
    if exercise is None:
        parser.error(f"name an exercise: {', '.join(practice.NAMES)}")
    if exercise.needs_root and not practice.is_root():
        parser.error(f"{exercise.name} mounts a disk, which takes root: run it with sudo")
    return 0 if practice.run(exercise, limit_s) is not None else 1


def _run(drills: tuple[LabDrill, ...], file: Path | None, keep: bool) -> int:
    """Run drills; return how many did not pass, as an exit code."""
    failed = 0
    for drill in drills:
        if drill.needs_root and os.geteuid() != 0:
            say(f"{drill.name}: skipped: it mounts a disk, which takes root: run script/drill with sudo", err=True)
            failed += 1
            continue
        say(f"{drill.name}: {drill.what}", err=True)
        done = execution.run(drill)
        _show(done)
        failed += done.verdict is DrillVerdict.FAILED
        if file is not None:
            file.write_bytes(msgspec.json.format(msgspec.json.encode(done)) + b"\n")
        if keep:
            results.keep(done)
    return min(failed, 1)


def _show(done: LabDrillRun) -> None:
    for step in done.steps:
        say(f"  {'ok  ' if step.passed else 'BAD '} {step.took_s:7.2f} s  {step.name}")
    for field, what in (("detect_s", "until it is noticed"), ("recover_s", "until it is well"), ("loss_s", "lost")):
        measured, promised = getattr(done.measured, field), getattr(done.promised, field)
        if measured is not None:
            of = "" if promised is None else f" of at most {promised:.0f} s"
            say(f"  {what}: {measured:.2f} s{of}")
    say(f"{done.drill}: {done.verdict}" + (f": {done.error}" if done.error else ""))


if __name__ == "__main__":
    sys.exit(main())
