"""User data that the database keeps encrypted with a project's key."""

from __future__ import annotations

import msgspec
import pytest

from novacron.model.cloud_init import SealedSeed, SealedSeedChanges, SeedChanges, StoredSeed, check_seed
from novacron.model.encryption import DataKey
from novacron.model.errors import Conflict
from novacron.sealed_text import seal, unseal
from novacron.store.hardware import check_sealed

KEY = DataKey("key-0123456789abcdef", bytes(range(32)))
OTHER = DataKey("key-fedcba9876543210", bytes(32))
TEXT = "#cloud-config\npassword: ünîcode\n"


def test_a_text_is_read_with_its_key_and_nowhere_else() -> None:
    sealed = seal(KEY, TEXT)
    assert unseal(KEY, sealed) == TEXT
    assert seal(KEY, TEXT) != sealed, "a nonce of its own each time"
    assert b"password" not in sealed.data
    for key, data in ((OTHER, sealed.data), (KEY, sealed.data[:-1] + b"\0"), (KEY, sealed.data[:20]), (KEY, b"")):
        with pytest.raises(ValueError, match="can't be decrypted"):
            unseal(key, msgspec.structs.replace(sealed, data=data))


def test_what_the_database_has_is_what_a_node_is_told() -> None:
    seed = SealedSeed(hostname="web", nameservers=("192.0.2.1",), generation=3, sealed=seal(KEY, TEXT))
    stored = msgspec.convert(msgspec.json.decode(msgspec.json.encode(seed)), SealedSeed)
    assert stored == seed and stored.sealed is not None
    assert msgspec.json.decode(msgspec.json.encode(SealedSeed(generation=1))) == {"generation": 1}  # others read it
    told = stored.opened(unseal(KEY, stored.sealed))
    assert type(told) is StoredSeed
    assert (told.user_data, told.hostname, told.nameservers, told.generation) == (TEXT, "web", ("192.0.2.1",), 3)


def test_changes_keep_replace_and_remove_what_is_sealed() -> None:
    before, another = SealedSeed(hostname="web", sealed=seal(KEY, TEXT)), seal(KEY, "#! b\n")
    assert check_seed(SeedChanges(hostname="db").of(before)).sealed == before.sealed
    assert SealedSeedChanges(user_data="", sealed=another).of(before).sealed == another
    assert SealedSeedChanges(user_data="").of(before).sealed is None


@pytest.mark.parametrize(
    ("seed", "key"),
    [
        (SealedSeed(user_data=TEXT), KEY.id),  # the project has just begun to encrypt
        (SealedSeed(sealed=seal(OTHER, TEXT)), KEY.id),  # its key was erased
        (SealedSeed(sealed=seal(KEY, TEXT)), ""),
    ],
)
def test_user_data_that_are_not_encrypted_as_their_vm_are_not_stored(seed: SealedSeed, key: str) -> None:
    with pytest.raises(Conflict, match="try again"):
        check_sealed(seed, key)
