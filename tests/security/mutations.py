"""Mends that can be switched off, each with the test that must fail then: ``python -m tests.security.mutations``.

Each is made in a scratch copy of the product's code, in which the test runs. With a number, every so-manieth is tried.
``test_mutations.py`` tries all of them in the slow matrix.
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
        "an image that arrives is the one that was asked for", "disk/images.py",
        "    if image.info.digest != digest:\n", "    if False:\n",
        "tests/security/test_images_of_peers.py::"
        "test_a_peer_that_gives_another_image_leaves_nothing_behind",
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
        "a body is awaited only as long as its caller may send it", "api/edge/admission.py",
        "await self._hold_of_caller(request.caller, body)", "await body.hold(OF_CALLERS)",
        "tests/unit/test_admission.py::test_a_body_is_awaited_only_as_long_as_its_caller_has_the_right",
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
    Mutation(
        "some turns are never one project's", "agent/fair_turns.py", "if self._rotation.held(project) < self._share]",
        "]", "tests/unit/test_fair_turns.py::test_some_turns_are_never_one_project_s",
    ),
    Mutation(
        "projects have their turns in rotation", "agent/fair_turns.py",
        "key=lambda project: (self._held[project], self._last.get(project, 0))", "key=lambda project: 0",
        "tests/unit/test_fair_turns.py::"
        "test_a_project_that_asks_for_many_turns_does_not_make_others_wait_for_all_of_them",
    ),
    Mutation(
        "a delay of starts counts within its project", "agent/vm/start_queue.py",
        "if of == project and lower < order)", "if lower < order)",
        "tests/unit/test_start_queue.py::test_a_project_with_many_starts_delays_nobody_else",
    ),
    Mutation(
        "disks out of backups have turns", "agent/vm/clone_reconciler.py",
        "            async with self._turn():\n                await restored_disk.make(context, of.backup)",
        "            await restored_disk.make(context, of.backup)",
        "tests/unit/test_fair_turns.py::test_disks_that_are_made_of_others_have_turns",
    ),
    Mutation(
        "exports are made in rotation", "agent/images/exports.py",
        '"" if vm is None else vm.name_and_project()[1]', '""',
        "tests/unit/test_fair_turns.py::test_exports_are_made_in_rotation",
    ),
    Mutation(
        "migrations of projects begin in rotation", "control/migration.py",
        "sorted(waiting, key=lambda turn: turn[:3])", "waiting",
        "tests/unit/test_node.py::test_migrations_of_projects_begin_in_rotation",
    ),
    Mutation(
        "nothing unpacks beyond its limit", "disk/unpack.py", "if size_bytes > size_bytes_max:", "if False:",
        "tests/unit/test_unpack.py::test_a_file_that_unpacks_beyond_the_limit_is_refused_early",
    ),
    Mutation(
        "no header of a compressed file takes gigabytes of memory", "disk/unpack.py",
        "zstandard.ZstdDecompressor(max_window_size=MEMORY_BYTES_MAX)",
        "zstandard.ZstdDecompressor(max_window_size=1 << 31)",
        "tests/unit/test_unpack.py::test_a_header_that_asks_for_gigabytes_of_memory_is_refused",
    ),
    Mutation(
        "the secret of an app is sealed for one factor", "api/access/second_factors.py",
        "encrypt(nonce, secret.encode(), factor.encode())", "encrypt(nonce, secret.encode(), b'')",
        "tests/unit/test_second_factors.py::test_the_secret_of_an_app_is_sealed_for_one_factor",
    ),
    Mutation(
        "a record of the audit log that was changed is found", "audit_chain/verification.py",
        "if not entries.matches(entry):", "if False:",
        "tests/unit/test_audit_chain.py::test_a_change_of_any_field_of_a_record_is_found_and_named",
    ),
    Mutation(
        "a head counts only as it was signed", "audit_chain/verification.py",
        "if public_key is not None and is_signed(head, public_key):", "if public_key is not None:",
        "tests/unit/test_audit_chain.py::test_a_head_counts_only_as_it_was_signed",
    ),
    Mutation(
        "digests of pages need the project's key", "dwcp/page_codec.py", "blake3(page, key=self.key)", "blake3(page)",
        "tests/unit/test_dwcp.py::test_a_digest_needs_the_project_s_key",
    ),
    Mutation(
        "programs of PostgreSQL get none of the server's environment", "child_environment.py",
        "if name.startswith(prefix)}", "}",
        "tests/security/test_child_environments.py::test_programs_of_postgresql_get_their_own_variables_alone",
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
