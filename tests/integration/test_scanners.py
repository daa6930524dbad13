"""The scanners of our own code and of what is deployed find nothing, and find what they are for; and the workflows run.

All of it takes minutes, and its tools another environment (script/scan)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCANNERS, TOOLS = ROOT / "deploy/scanners", ROOT / ".scanners/bin"
TIMEOUT_S = 1500
EXAMPLES = {
    "shell-strings": "import subprocess\nsubprocess.run(command, shell=True)",
    "code-from-data": "import pickle\npickle.loads(data)",
    "unverified-tls": "import ssl\ncontext = ssl.create_default_context()\ncontext.check_hostname = False",
    "compared-secrets": "if request.signature == expected:\n    accept()",
    "unpacked-archives": "import tarfile\ntarfile.open(path).extractall(directory)",
    "untrusted-xml": "import xml.etree.ElementTree\nxml.etree.ElementTree.fromstring(data)",
    "guessable-secrets": "import random\ntoken = random.randbytes(16)",
    "guessable-temporary-files": "import tempfile\ntempfile.mktemp()",
    "secrets-in-logs": 'log.info("logged in", token=token)',
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(TIMEOUT_S)]


def scan(*what: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ROOT / "script/scan", *what], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


def test_bandit_and_semgrep_find_nothing_in_the_code() -> None:
    done = scan("code")
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_rule_of_semgrep_finds_its_example(tmp_path: Path) -> None:
    scan("install")
    rules = yaml.safe_load((SCANNERS / "rules/novacron.yaml").read_text())["rules"]
    assert [rule["id"] for rule in rules] == list(EXAMPLES)
    for name, example in EXAMPLES.items():
        (tmp_path / f"{name}.py").write_text(example + "\n")
    done = subprocess.run(
        [TOOLS / "semgrep", "scan", "--config", SCANNERS / "rules", "--metrics", "off", "--disable-version-check",
         "--quiet", "--json", tmp_path],
        capture_output=True, text=True, timeout=300, env={**os.environ, "PATH": f"{TOOLS}:{os.environ['PATH']}"},
    )  # fmt: skip
    found = {(Path(hit["path"]).stem, hit["check_id"].rpartition(".")[2]) for hit in json.loads(done.stdout)["results"]}
    assert found == {(name, name) for name in EXAMPLES}, done.stderr


def test_no_secret_is_in_the_repository_but_those_of_tests_and_examples(tmp_path: Path) -> None:
    done = scan("secrets")
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "settings.py").write_text(f'api_key = "{os.urandom(20).hex()}"\n')
    done = subprocess.run(
        [TOOLS / "detect-secrets-hook", "--no-verify", "--baseline", SCANNERS / "secrets.json",
         tmp_path / "settings.py"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs a kubectl that Debian 12 does not have")
def test_checkov_finds_nothing_in_what_is_deployed() -> None:
    done = scan("deployment")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Failed checks: 0") == done.stdout.count("scan results:") >= 2, done.stdout


def act(workflow: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run jobs of a workflow on this host, as GitHub would; the work tree is copied, as a checkout would do."""
    scan("install")
    return subprocess.run(
        [TOOLS / "act", "push", "--workflows", ROOT / ".github/workflows" / workflow, "--platform",
         "ubuntu-24.04=-self-hosted", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip


def test_the_lint_job_passes() -> None:
    done = act("ci.yml", "--job", "lint")
    assert done.returncode == 0 and "Success - Main script/lint" in done.stdout, done.stdout + done.stderr


def test_the_audit_job_fails_when_the_database_of_vulnerabilities_does_not_answer() -> None:
    done = act(
        "security.yml",
        "--job",
        "scan",
        "--matrix",
        "what:dependencies",
        "--env",
        "NOVACRON_AUDIT_DATABASE=http://127.0.0.1:9/",
    )
    assert done.returncode != 0, done.stdout
    assert "not audited: can't reach http://127.0.0.1:9/" in done.stdout, done.stdout + done.stderr
