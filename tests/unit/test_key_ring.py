"""The platform's keys in a process: which generation is used, which are accepted, and how they are kept."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from novacron import pki
from novacron.key_ring import Generation, KeyRing, KeySeal
from novacron.model.errors import InvalidInput
from novacron.model.key import KeyName, KeyPhase, phase_of

BEGAN = datetime(2026, 11, 1, tzinfo=UTC)
LATER = BEGAN + timedelta(days=1)
DERIVED = b"d" * 32


def ring(*generations: Generation) -> KeyRing:
    return KeyRing({KeyName.PAGE: generations, KeyName.SEAL: generations, KeyName.IDEMPOTENCY: generations})


def test_an_installation_that_has_rotated_nothing_has_the_secrets_that_it_always_had(tmp_path: Path) -> None:
    authority = pki.Authority.open(tmp_path)
    secret = pki.load_key(tmp_path / "ca.key").private_numbers().private_value.to_bytes(32, "big")
    keys = KeyRing.first(authority.root())
    for name, purpose in (
        (KeyName.PAGE, "pages of project prj-a"),
        (KeyName.SEAL, "logins through a provider"),
        (KeyName.SEAL, "browsers that users have logged in with"),
        (KeyName.IDEMPOTENCY, "idempotency keys"),
    ):
        before = HKDF(hashes.SHA256(), 32, b"novacron", purpose.encode()).derive(secret)
        assert keys.accepted(name, purpose) == [keys.derive(name, purpose)] == [before], purpose
    assert secret not in authority.root()


def test_a_new_generation_is_accepted_before_it_is_used_and_the_one_before_after_it() -> None:
    old, new = Generation(1, b"a" * 32, BEGAN, in_use=True), Generation(2, b"b" * 32, LATER, in_use=False)
    keys = ring(old)
    first = keys.derive(KeyName.SEAL, "x")
    assert keys.replace({KeyName.SEAL: [old, new]}) and keys.derive(KeyName.SEAL, "x") == first
    spreading = keys.accepted(KeyName.SEAL, "x")
    assert spreading[0] == first and len(spreading) == 2
    keys.replace({KeyName.SEAL: [old, new._replace(in_use=True)]})
    assert keys.accepted(KeyName.SEAL, "x") == spreading[::-1]
    keys.replace({KeyName.SEAL: [new._replace(in_use=True)]})
    assert keys.accepted(KeyName.SEAL, "x") == spreading[1:]
    assert not keys.replace({KeyName.SEAL: [new._replace(in_use=True)]}), "nothing is different"


def test_both_nodes_of_a_migration_keep_to_the_page_key_of_when_it_began() -> None:
    old, new = Generation(1, b"a" * 32, BEGAN, in_use=True), Generation(2, b"b" * 32, LATER, in_use=True)
    first, second = ring(old).page_keys("p", None)[0], ring(new).page_keys("p", None)[0]
    keys = ring(old, new)
    assert keys.page_keys("p", LATER - timedelta(seconds=1)) == [first, second]
    assert keys.page_keys("p", LATER) == keys.page_keys("p", None) == [second, first]
    assert keys.page_keys("p", BEGAN - timedelta(days=1))[0] == first, "older than all that is known"
    behind = ring(old, new._replace(in_use=False))  # a server whose clock, or look, is a moment behind
    assert behind.page_keys("p", LATER)[0] == second


def test_keys_in_the_database_are_opened_by_their_seal_alone(tmp_path: Path) -> None:
    seal = KeySeal(tmp_path / "seal.key", DERIVED)
    sealed = seal.seal("page", 1, b"secret" * 5)
    assert b"secret" not in sealed
    seal.keep()
    assert (tmp_path / "seal.key").stat().st_mode & 0o777 == 0o600
    assert KeySeal(tmp_path / "seal.key", b"x" * 32).unseal("page", 1, sealed) == b"secret" * 5, "the file counts"
    for name, generation in (("seal", 1), ("page", 2)):
        with pytest.raises(InvalidInput, match=r"can't be opened with .*seal\.key"):
            seal.unseal(name, generation, sealed)  # swapped in the database
    with pytest.raises(InvalidInput, match="--new-keys"):
        KeySeal(tmp_path / "other" / "seal.key", b"x" * 32).unseal("page", 1, sealed)
    (tmp_path / "seal.key").write_bytes(b"nonsense\n")
    with pytest.raises(InvalidInput, match="damaged"):
        KeySeal(tmp_path / "seal.key", DERIVED)


def test_what_is_sealed_anew_is_of_no_use_to_whoever_has_the_seal_of_before(tmp_path: Path) -> None:
    here, there = KeySeal(tmp_path / "here", DERIVED), KeySeal(tmp_path / "there", DERIVED)
    before = here.seal("ca", 2, b"key")
    mark, following = here.next_key()
    here.take_next(following)
    assert here.mark == mark != there.mark
    sealed = here.seal_anew("ca", 2, before)
    with pytest.raises(InvalidInput):
        there.unseal("ca", 2, sealed)
    there.take_next(following)
    assert there.unseal("ca", 2, sealed) == there.unseal("ca", 2, before) == b"key"
    there.forget_others()
    assert KeySeal(tmp_path / "there", DERIVED).unseal("ca", 2, sealed) == b"key"
    with pytest.raises(InvalidInput):
        there.unseal("ca", 2, before)


@pytest.mark.parametrize(
    ("used", "generations", "retiring", "phase"),
    [
        (True, 1, False, KeyPhase.STEADY),
        (False, 2, False, KeyPhase.SPREADING),
        (True, 2, False, KeyPhase.OVERLAPPING),
        (True, 2, True, KeyPhase.RETIRING),
    ],
)
def test_how_far_a_rotation_is(used: bool, generations: int, retiring: bool, phase: KeyPhase) -> None:
    assert phase_of(used, generations, retiring) is phase
