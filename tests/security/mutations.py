"""Mends that can be switched off, each with the test that must fail then: ``python -m tests.security.mutations``.

Each is made in a scratch copy of the product's code, in which the test runs. With a number, every so-manieth is tried.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 300.0


class Mutation(NamedTuple):
    """``text`` of a file below ``src/novacron`` becomes ``instead``: the mend does nothing. ``test`` says so."""

    mend: str
    file: str
    text: str
    instead: str
    test: str


MUTATIONS = (
    Mutation(
        "an agent without a readable list of revoked keys refuses everybody", "dwcp/admittance.py",
        "if self._revoked is None or key in self._revoked or", "if key in (self._revoked or ()) or",
        "tests/security/test_stolen_nodes.py::"
        "test_an_agent_without_a_readable_list_of_revoked_keys_speaks_with_nobody_until_the_server_sent_it",
    ),
    Mutation(
        "connections of a removed node are cut", "dwcp/admittance.py",
        "            if key in revoked:\n                connection.abort()", "            pass",
        "tests/security/test_stolen_nodes.py::test_a_node_that_was_removed_loses_its_connections_and_gets_no_more",
    ),
    Mutation(
        "one node has no more connections than its share", "dwcp/listener.py",
        "yield self._by_peer[peer] <= CONNECTIONS_PER_PEER_MAX", "yield True",
        "tests/security/test_stolen_nodes.py::"
        "test_silent_connections_of_one_node_and_of_strangers_stop_no_other_node",
    ),
    Mutation(
        "another image under an imported name does not count", "store/nodes.py", "    if foreign:\n", "    if False:\n",
        "tests/security/test_stolen_nodes.py::"
        "test_what_a_node_claims_as_an_imported_image_is_seen_by_nobody_and_blocks_nobody",
    ),
    Mutation(
        "a node gets no image without a VM of it", "server/images.py",
        "if not await vms.made_of(connection, name, node):", "if False:",
        "tests/security/test_stolen_nodes.py::test_a_node_is_given_an_image_only_for_a_vm_that_is_placed_on_it",
    ),
    Mutation(
        "a VM runs with no other image than its own", "disk/images.py",
        "return digest in (None, self.info.digest)", "return True",
        "tests/unit/test_images.py::test_an_image_is_told_from_another_under_its_name",
    ),
    Mutation(
        "a certificate is renewed for the same key only", "pki.py",
        'raise ValueError("the certificate request is for another key than the node\'s")', "pass",
        "tests/security/test_stolen_nodes.py::test_a_certificate_is_renewed_for_the_same_key_only",
    ),
    Mutation(
        "machine types of other nodes are no options of QEMU", "model/vm.py",
        r'Meta(pattern=r"^([A-Za-z0-9][A-Za-z0-9._+-]{0,63})?\Z")', 'Meta(pattern=".*")',
        "tests/security/test_values_for_nodes.py::"
        "test_what_a_node_reports_of_a_vm_is_no_option_of_another_nodes_qemu",
    ),
    Mutation(
        "ranges of addresses are stored as nftables reads them", "model/network.py",
        "return msgspec.structs.replace(rule, cidr=str(network))", "return rule",
        "tests/security/test_values_for_nodes.py::test_values_are_stored_in_canonical_form_or_refused",
    ),
    Mutation(
        "an interface whose rules are refused is closed", "net/firewall.py", "if key_of(nic) in closed:", "if False:",
        "tests/unit/test_network.py::test_nothing_passes_through_a_closed_interface",
    ),
    Mutation(
        "only named proxies are believed", "api/access/client_address.py",
        "if not self._networks or not self.is_proxy(peer):", "if not self._networks:",
        "tests/unit/test_client_address.py::test_only_named_proxies_are_believed_and_only_the_header_that_they_write",
    ),
    Mutation(
        "what is left of the client's address is the client's word", "api/access/client_address.py",
        "            if not self.is_proxy(address):\n                break\n", "",
        "tests/unit/test_client_address.py::test_the_client_is_the_first_from_the_right_that_is_no_proxy",
    ),
    Mutation(
        "the disk in an image counts in its project's quota", "store/imports.py",
        "await _reserve(connection, row, disk_mib)", "pass",
        "tests/security/test_shares.py::"
        "test_an_image_counts_with_the_disk_in_it_and_nothing_larger_is_made_than_the_quota_allows",
    ),
    Mutation(
        "one project takes half of a node's imports", "store/imports.py",
        'if row["own"] >= limits.IMPORTS_PER_PROJECT_MAX:', "if False:",
        "tests/security/test_shares.py::test_a_project_takes_half_of_a_node_s_imports_and_no_more",
    ),
    Mutation(
        "sessions that are not used end", "store/tokens.py",
        "OR greatest(t.created_at, u.used_at) < now() - make_interval(secs => l.idle_s)", "",
        "tests/security/test_lifetimes.py::test_what_is_too_old_or_was_not_used_for_too_long_ends",
    ),
    Mutation(
        "a join token is for one node", "store/tokens.py",
        "\" AND node = $2 RETURNING accept\"", "\" AND $2::text IS NOT NULL RETURNING accept\"",
        "tests/security/test_join_tokens.py::test_a_token_is_for_one_node",
    ),
    Mutation(
        "what was begun with a right ends with it", "api/access/live_calls.py",
        "call.limit.reschedule(loop_s)", "pass",
        "tests/unit/test_live_calls.py::test_a_call_ends_when_its_caller_loses_a_right",
    ),
    Mutation(
        "nodes download from public addresses only", "agent/images/download.py",
        "return _is_public(plain) and not _is_own(plain)", "return True",
        "tests/security/test_downloads.py::test_no_address_that_is_not_public_is_connected_to",
    ),
    Mutation(
        "a try of a password counts from its beginning", "api/access/passwords.py",
        "        await self._begin(limits)\n        try:\n            good =", "        try:\n            good =",
        "tests/unit/test_passwords.py::test_many_guesses_at_once_are_no_more_than_many_in_turn",
    ),
    Mutation(
        "nothing that others wrote controls a terminal", "terminal.py",
        "c.isprintable() or c in kept or not _controls(c)", "True",
        "tests/unit/test_terminal.py::test_what_others_wrote_is_shown_and_not_obeyed",
    ),
)  # fmt: skip


def survives(mutation: Mutation) -> bool:
    """Say whether the test passes although the mend is switched off."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as scratch:
        copy = Path(scratch) / "src"
        shutil.copytree(ROOT / "src", copy, ignore=shutil.ignore_patterns("__pycache__"))
        file = copy / "novacron" / mutation.file
        file.write_text(file.read_text().replace(mutation.text, mutation.instead, 1))
        return _pass(copy, mutation.test)


def _pass(source: Path, *tests: str) -> bool:
    """Say whether tests pass with the product's code below ``source``."""
    tried = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=TIMEOUT_S,
        env={**os.environ, "PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    if tried.returncode not in (0, 1):
        raise RuntimeError(f"{tests} can't be run: {tried.stdout[-2000:]}{tried.stderr[-2000:]}")
    return tried.returncode == 0


def main() -> int:
    """Try them; return how many survive."""
    survivors = 0
    chosen = MUTATIONS[:: int(sys.argv[1]) if len(sys.argv) > 1 else 1]
    if not _pass(ROOT / "src", *(mutation.test for mutation in chosen)):
        raise RuntimeError("the tests fail without any of them")
    for mutation in chosen:
        survived = survives(mutation)
        survivors += survived
        print(f"{'SURVIVES' if survived else 'found   '}  {mutation.mend}", flush=True)
    return survivors


if __name__ == "__main__":
    sys.exit(main())
