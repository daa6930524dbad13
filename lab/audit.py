"""Whether what is installed has known vulnerabilities (``script/scan dependencies``): asks a public database about
every package of the bill of materials.

An audit that can't reach its database looks like one that found nothing. So some of the questions have known answers
(``KNOWN``), and the audit fails unless the database gives them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

import urllib3

from lab import sbom

DATABASE = "https://api.osv.dev/v1/querybatch"
ACCEPTED = sbom.ROOT / "deploy/scanners/accepted.toml"
KNOWN = ("pkg:pypi/jinja2@2.4.1", "pkg:npm/lodash@4.17.20")
"""One of each kind of package, in a version that is known to be vulnerable."""
KINDS = ("pkg:pypi/", "pkg:npm/")
QUESTIONS_MAX = 1000
"""In one request, by the database's own limit."""
PAGES_MAX = 20
TIMEOUT_S = 30.0
RETRIES = urllib3.Retry(total=4, backoff_factor=1, status_forcelist=(429, 500, 502, 503, 504), allowed_methods=None)
VULNERABLE, NOT_AUDITED = 1, 2
"""Exit codes."""

Found = dict[str, list[str]]
"""The vulnerabilities of each package, both by their names there."""


class NotAuditedError(Exception):
    """The database could not be asked, or its answer can't be right."""


class Accepted(NamedTuple):
    """A vulnerability that is known, and accepted for a while."""

    id: str
    package: str
    reason: str
    until: date


def accepted(path: Path = ACCEPTED) -> list[Accepted]:
    return [Accepted(**entry) for entry in tomllib.loads(path.read_text())["accepted"]]


def packages(document: str) -> list[str]:
    """Return the package URLs of a bill of materials that the database knows: those with a version."""
    found = {part["purl"].partition("?")[0] for part in json.loads(document)["components"]}
    return sorted(purl for purl in found if purl.startswith(KINDS) and "@" in purl.rpartition("/")[2])


def ask(purls: Sequence[str], url: str, retries: urllib3.Retry = RETRIES) -> Found:
    """Return which of these packages are vulnerable, and how. Raises NotAuditedError."""
    found: Found = {}
    with urllib3.PoolManager(timeout=TIMEOUT_S, retries=retries) as client:
        for begin in range(0, len(purls), QUESTIONS_MAX):
            waiting: list[Any] = [{"package": {"purl": purl}} for purl in purls[begin : begin + QUESTIONS_MAX]]
            for _ in range(PAGES_MAX):
                waiting = _page(client, url, waiting, found)
                if not waiting:
                    break
            else:
                raise NotAuditedError(f"the database has more than {PAGES_MAX} pages of answers")
    return found


def _page(client: urllib3.PoolManager, url: str, questions: list[Any], found: Found) -> list[Any]:
    """Ask, add to what was found, and return the questions whose answers go on."""
    try:
        reply = client.request("POST", url, json={"queries": questions})
        if reply.status != 200:
            raise NotAuditedError(f"{url} answered {reply.status}")
        results = reply.json()["results"]
        if len(results) != len(questions):
            raise NotAuditedError(f"{url} answered {len(results)} of {len(questions)} questions")
        more = []
        for question, result in zip(questions, results, strict=True):
            ids = [vulnerability["id"] for vulnerability in result.get("vulns", ())]
            if ids:
                found.setdefault(question["package"]["purl"], []).extend(ids)
            if result.get("next_page_token"):
                more.append({**question, "page_token": result["next_page_token"]})
    except urllib3.exceptions.HTTPError as error:
        raise NotAuditedError(f"can't reach {url}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotAuditedError(f"{url} answered something else than expected: {error!r}") from None
    return more


def audit(purls: Sequence[str], url: str = DATABASE, retries: urllib3.Retry = RETRIES) -> Found:
    """Return the vulnerable packages. Raises NotAuditedError, also when the database does not know what is known."""
    if not purls:
        raise NotAuditedError("the bill of materials lists no package")
    found = ask([*KNOWN, *(purl for purl in purls if purl not in KNOWN)], url, retries)
    unknown = [purl for purl in KNOWN if purl not in found]
    if unknown:
        raise NotAuditedError(f"{url} finds nothing wrong with {' and '.join(unknown)}: its answers prove nothing")
    return {purl: ids for purl, ids in found.items() if purl in purls}


def remaining(found: Mapping[str, Iterable[str]], accepts: Iterable[Accepted], today: date) -> list[str]:
    """Return a line for each vulnerability that is not accepted, or no longer."""
    until = {(entry.package, entry.id): entry.until for entry in accepts}
    lines = []
    for purl, ids in sorted(found.items()):
        name = purl.partition("/")[2].rpartition("@")[0]
        for id in ids:
            day = until.get((name, id))
            if day is None:
                lines.append(f"{purl}: {id}")
            elif day < today:
                lines.append(f"{purl}: {id} (was accepted until {day})")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="lab.audit", description=__doc__)
    default = os.environ.get("NOVACRON_AUDIT_DATABASE", DATABASE)
    parser.add_argument("--database", default=default, metavar="URL", help="who is asked, as OSV's querybatch")
    options = parser.parse_args()
    purls = packages(sbom.document(with_development=True))
    try:
        found = audit(purls, options.database)
    except NotAuditedError as error:
        print(f"not audited: {error}", file=sys.stderr)
        sys.exit(NOT_AUDITED)
    lines = remaining(found, accepted(), datetime.now(UTC).date())
    print(*lines, f"{len(purls)} packages, {len(lines)} known vulnerabilities that are not accepted", sep="\n")
    sys.exit(VULNERABLE if lines else 0)


if __name__ == "__main__":
    main()
