"""The audit log's hash chain: what a verification finds, and what erasure and retention leave as they are."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from novacron.audit_chain import entries, verification
from novacron.audit_chain.entries import ChainedRecord, ChainEntry
from novacron.audit_chain.heads import PublicKey, SignedHead, SigningKey, is_signed
from novacron.audit_chain.verification import ChainState, Fault, FaultKind, VerificationReport, Verifier
from novacron.store.erasure import personal_fields
from tests.chance import fixed_seed

CHAIN = "chain-of-the-test"
AT = datetime(2026, 11, 27, 8, 0, tzinfo=UTC)
KEY = SigningKey(Ed25519PrivateKey.generate())
LENGTH = 20


def record(id: int, **fields: object) -> ChainedRecord:
    known: dict[str, object] = {
        "actor": "ann", "user_id": "user-1", "token": "tok-1", "address": "192.0.2.7", "method": "POST",
        "path": "/api/v1/vms", "action": "create_vm", "object": f"vm-{id}", "name": "db", "project": "default",
        "outcome": "done", "status": 201, "detail": "", "request_id": f"r{id}",
    }  # fmt: skip
    return msgspec.convert({"id": id, "at": AT + timedelta(seconds=id), **known, **fields}, ChainedRecord)


def chained(records: Sequence[ChainedRecord], seq: int = 0, previous: str = "") -> list[ChainEntry]:
    chain: list[ChainEntry] = []
    previous = previous or entries.genesis(CHAIN)
    for each in records:
        entry = entries.append(seq, previous, each)
        seq, previous = entry.seq, entry.hash
        chain.append(entry)
    return chain


def head_of(entry: ChainEntry, key: SigningKey = KEY) -> SignedHead:
    return key.sign(CHAIN, entry.seq, entry.hash, AT + timedelta(hours=entry.seq))


def public(key: SigningKey) -> PublicKey:
    return PublicKey(id=key.id, public_key=key.public_key, server="host-a", created_at=AT)


def state_of(chain: Sequence[ChainEntry], **more: object) -> ChainState:
    known: dict[str, object] = {
        "chain": CHAIN, "start_seq": 0, "start_hash": entries.genesis(CHAIN), "seq": chain[-1].seq,
        "hash": chain[-1].hash, "keys": [msgspec.to_builtins(public(KEY))], "unchained": 0, "unchained_oldest_s": 0.0,
        "strays": [],
    }  # fmt: skip
    return msgspec.convert({**known, **more}, ChainState)


def verified(
    chain: Sequence[ChainEntry],
    heads: Sequence[SignedHead] = (),
    state: ChainState | None = None,
    trusted: Sequence[SignedHead] = (),
) -> VerificationReport:
    state = state or state_of(chain)
    keys = [public(KEY)] if trusted else None
    verifier = Verifier(state, (state.start_seq, state.start_hash), heads, trusted, keys)
    return verification.verify(verifier, chain, to_the_end=True)


def kinds(report: VerificationReport) -> set[FaultKind]:
    return {fault.kind for fault in report.faults}


@pytest.fixture
def chain() -> list[ChainEntry]:
    return chained([record(id) for id in range(1, LENGTH + 1)])


def test_a_chain_that_nobody_touched_is_good(chain: list[ChainEntry]) -> None:
    report = verified(chain, [head_of(chain[9]), head_of(chain[19])])
    assert report.good and (report.first, report.last, report.heads, report.vouched) == (1, 20, 2, 20)


@pytest.mark.parametrize("field", [*entries.PERSONAL, *entries.OTHERS, "at", "id"])
def test_a_change_of_any_field_of_a_record_is_found_and_named(chain: list[ChainEntry], field: str) -> None:
    before = chain[6].record
    assert before is not None
    values = {"at": before.at + timedelta(microseconds=1), "id": 99, "status": 200}
    chain[6] = msgspec.structs.replace(chain[6], record=msgspec.structs.replace(
        before, **{field: values.get(field, "another")}
    ))  # fmt: skip
    report = verified(chain)
    assert [(fault.kind, fault.seq) for fault in report.faults] == [(FaultKind.CHANGED, 7)]
    assert f"record {chain[6].record.id if chain[6].record else ''} was changed" in report.faults[0].message


def test_nothing_and_an_empty_text_are_not_the_same(chain: list[ChainEntry]) -> None:
    before = chain[0].record
    assert before is not None
    salt = entries.new_salt()
    assert entries.commitment(salt, None) != entries.commitment(salt, "")
    assert entries.salts_of(salt)["actor"] != entries.salts_of(salt)["address"]


def _replaced(chain: list[ChainEntry], n: int, **fields: object) -> list[ChainEntry]:
    return [*chain[:n], msgspec.structs.replace(chain[n], **fields), *chain[n + 1 :]]


def _renumbered(chain: list[ChainEntry]) -> list[ChainEntry]:
    return [msgspec.structs.replace(entry, seq=seq) for seq, entry in enumerate(chain, 1)]


def _exchanged_records(chain: list[ChainEntry]) -> list[ChainEntry]:
    one, other = chain[3], chain[11]
    chain[3] = msgspec.structs.replace(one, record=other.record, record_id=other.record_id)
    chain[11] = msgspec.structs.replace(other, record=one.record, record_id=one.record_id)
    return chain


def _exchanged_entries(chain: list[ChainEntry]) -> list[ChainEntry]:
    one, other = chain[3], chain[11]
    chain[3], chain[11] = (msgspec.structs.replace(other, seq=one.seq), msgspec.structs.replace(one, seq=other.seq))
    return chain


def _rewritten(chain: list[ChainEntry]) -> list[ChainEntry]:
    """Change a record, and compute all hashes after it anew, as who can write everything does."""
    later = [entry.record for entry in chain[5:] if entry.record is not None]
    later[0] = msgspec.structs.replace(later[0], actor="mallory")
    return [*chain[:5], *chained(later, chain[4].seq, chain[4].hash)]


@pytest.mark.parametrize(
    ("attack", "kind", "says"),
    [
        (lambda chain: _replaced(chain, 6, record=None), FaultKind.REMOVED, "record 7 was removed"),
        (lambda chain: [*chain[:6], *chain[8:]], FaultKind.REMOVED, "entries 7 to 8 are missing"),
        (lambda chain: _renumbered([*chain[:6], *chain[7:]]), FaultKind.BROKEN, "entry 7 does not follow entry 6"),
        (_exchanged_records, FaultKind.REORDERED, "record 12 is at place 4, and was at 12"),
        (_exchanged_entries, FaultKind.REORDERED, "record 12 is at place 4, and was at 12"),
        (lambda chain: [*chain[:3], chain[4], chain[3], *chain[5:]], FaultKind.REORDERED, "entry 4 comes after"),
        (_rewritten, FaultKind.HEAD, "was rewritten after entry 5"),
        (lambda chain: chain[:15], FaultKind.REMOVED, "entries after 15 are missing"),
    ],
)
def test_each_attack_is_found_and_what_it_hit_is_named(
    chain: list[ChainEntry], attack: Callable[[list[ChainEntry]], list[ChainEntry]], kind: FaultKind, says: str
) -> None:
    heads = [head_of(chain[4]), head_of(chain[19])]
    attacked = attack(list(chain))
    report = verified(attacked, heads, state_of(attacked if attack is _rewritten else chain))
    assert any(fault.kind is kind and says in fault.message for fault in report.faults), report.faults


def test_a_record_that_was_inserted_beside_the_chain_is_named(chain: list[ChainEntry]) -> None:
    report = verified(chain, state=state_of(chain, strays=[77]))
    assert report.faults == [Fault(kind=FaultKind.INSERTED, record=77,
                                   message="record 77 was inserted: it is in no place of the chain")]  # fmt: skip


def test_a_log_that_was_cut_off_at_its_end_with_its_heads_is_found_with_heads_that_were_kept(
    chain: list[ChainEntry],
) -> None:
    kept = head_of(chain[17])
    shorter = chain[:12]
    assert verified(shorter).good, "without a head kept elsewhere nobody can tell"
    report = verified(shorter, trusted=[kept])
    assert kinds(report) == {FaultKind.REMOVED} and "there was an entry 18" in report.faults[0].message


def test_a_log_that_was_written_anew_with_another_key_is_found_with_heads_that_were_kept(
    chain: list[ChainEntry],
) -> None:
    mallory = SigningKey(Ed25519PrivateKey.generate())
    anew = _rewritten(list(chain))
    state = state_of(anew, keys=[msgspec.to_builtins(public(mallory))])
    assert verified(anew, [head_of(anew[19], mallory)], state).good
    report = verified(anew, [head_of(anew[19], mallory)], state, trusted=[head_of(chain[9])])
    assert kinds(report) == {FaultKind.HEAD}
    assert any("unknown" in fault.message for fault in report.faults), "his key is none of those that were kept"
    assert any("entry 10" in fault.message for fault in report.faults)


@pytest.mark.parametrize("field", ["seq", "hash", "at", "chain", "signature"])
def test_a_head_counts_only_as_it_was_signed(chain: list[ChainEntry], field: str) -> None:
    head = head_of(chain[3])
    assert is_signed(head, KEY.public_key)
    values = {"seq": 5, "at": AT, "hash": "00" * 32, "chain": "another", "signature": "00" * 64}
    forged = msgspec.structs.replace(head, **{field: values[field]})
    assert not is_signed(forged, KEY.public_key)
    assert FaultKind.HEAD in kinds(verified(chain, [forged], state_of(chain)))


def test_old_records_are_cut_off_and_a_signed_head_vouches_for_the_new_start(chain: list[ChainEntry]) -> None:
    anchor = head_of(chain[9])
    state = state_of(chain, start_seq=10, start_hash=chain[9].hash)
    report = verified(chain[10:], [anchor], state)
    assert report.good and (report.first, report.last, report.vouched) == (11, 20, 10)
    assert kinds(verified(chain[10:], [], state)) == {FaultKind.HEAD}, "nobody vouches for the start"
    assert kinds(verified(chain[12:], [anchor], state)) == {FaultKind.REMOVED}
    moved = state_of(chain, start_seq=12, start_hash=chain[11].hash)
    assert kinds(verified(chain[12:], [anchor], moved)) == {FaultKind.HEAD}, "more than was to be cut"


def _erased(chain: list[ChainEntry], name: str, pseudonym: str, *, count: int | None = None) -> list[ChainEntry]:
    """Erase a person as the server does, and announce it."""
    result: list[ChainEntry] = []
    for entry in chain:
        assert entry.record is not None
        fields = personal_fields(entry.record, "user-1", name)
        if not fields:
            result.append(entry)
            continue
        erased = entries.erase(entry, entry.record, fields, pseudonym)
        shown = msgspec.structs.replace(entry.record, **dict.fromkeys(fields, pseudonym))
        result.append(msgspec.structs.replace(entry, salt=None, erased=erased, record=shown))
    changed = sum(1 for one, other in zip(chain, result, strict=True) if one is not other)
    announced = record(
        len(chain) + 1, actor="root", user_id="user-0", address="192.0.2.9", action=verification.ERASURE,
        path="/api/v1/audit/erasures", name=pseudonym, object=None,
        detail=f"data of one person was replaced in {count or changed} records",
    )  # fmt: skip
    return [*result, *chained([announced], result[-1].seq, result[-1].hash)]


def test_a_person_is_erased_and_the_chain_still_verifies(chain: list[ChainEntry]) -> None:
    bobs = record(21, actor="bob", user_id="user-2", address="192.0.2.8", path="/api/v1/users/ann",
                  object="ann", name="ann", action="delete_user", detail="user ann is gone")  # fmt: skip
    whole = [*chain, *chained([bobs], chain[-1].seq, chain[-1].hash)]
    erased = _erased(whole, "ann", "erased-1")
    text = msgspec.json.encode(erased).decode()
    assert "ann" not in text and "192.0.2.7" not in text and "192.0.2.8" in text
    report = verified(erased, [head_of(whole[20])])
    assert report.good and report.erased == 21
    twice = _erased(erased[:-1], "bob", "erased-2")
    assert twice[20].erased is not None and twice[20].erased.pseudonyms == ["erased-1", "erased-2"]
    assert verified([*twice[:-1], *erased[-1:]][:22]).faults, "the second erasure was not announced"


def test_an_erased_value_cannot_be_guessed_from_what_is_left(chain: list[ChainEntry]) -> None:
    erased = _erased(chain, "ann", "erased-1")[0].erased
    assert erased is not None and not erased.salts.keys() & erased.commitments.keys()
    assert entries.commitment("00" * 16, "ann") != erased.commitments["actor"]
    assert chain[0].salt is not None and chain[0].salt not in msgspec.json.encode(erased).decode()


def test_values_hidden_behind_an_erasure_that_nobody_announced_are_found(chain: list[ChainEntry]) -> None:
    erased = _erased(chain, "ann", "erased-1")
    unannounced = erased[:-1]
    assert kinds(verified(unannounced)) == {FaultKind.ERASED}
    assert kinds(verified(_erased(chain, "ann", "erased-1", count=3))) == {FaultKind.ERASED}, "more than announced"
    shown = erased[4].record
    assert shown is not None
    framed = _replaced(erased, 4, record=msgspec.structs.replace(shown, actor="bob"))
    assert kinds(verified(framed)) == {FaultKind.CHANGED}, "a pseudonym can't become somebody else"


def test_only_what_names_the_person_is_erased() -> None:
    def fields(**more: object) -> frozenset[str]:
        return personal_fields(record(1, **more), "user-1", "ann")

    assert fields() == {"actor", "address"}
    assert fields(actor="bob", user_id="user-2", name="ann") == frozenset(), "a VM may have a person's name"
    assert fields(actor="bob", user_id="user-2", path="/api/v1/users/annabel", name="annabel") == frozenset()
    assert fields(actor="bob", user_id="user-2", path="/api/v1/users/ann/password", object="ann", name="ann") == {
        "path", "object", "name",
    }  # fmt: skip
    detail = "too many wrong passwords: for ann from 192.0.2.7"
    login = fields(actor="-", user_id=None, path="/api/v1/login", name="ann", object=None, detail=detail)
    assert login == {"address", "name", "detail"}


def test_random_changes_never_go_unseen(chain: list[ChainEntry]) -> None:
    """Whatever is dropped, doubled, moved or exchanged of a chain whose end a head vouches for."""
    seed = fixed_seed()
    print("seed", seed)
    chance, head = random.Random(seed), head_of(chain[-1])
    for _ in itertools.repeat(None, 100):
        attacked = list(chain)
        match chance.randrange(4):
            case 0:
                del attacked[chance.randrange(LENGTH)]
            case 1:
                attacked.insert(chance.randrange(LENGTH), chance.choice(chain))
            case 2:
                attacked.insert(chance.randrange(LENGTH - 1), attacked.pop())
            case _:
                one, other = chance.sample(range(LENGTH), 2)
                attacked[one], attacked[other] = attacked[other], attacked[one]
        if chance.random() < 0.5:
            attacked = _renumbered(attacked)
        if attacked != chain:
            assert not verified(attacked, [head], state_of(chain)).good


def test_a_server_keeps_its_key_to_itself(tmp_path: Path) -> None:
    path = tmp_path / "audit.key"
    key = SigningKey.open(path)
    assert path.stat().st_mode & 0o777 == 0o600 and SigningKey.open(path).id == key.id
    path.write_text("damaged")
    with pytest.raises(ValueError, match=r"."):
        SigningKey.open(path)
