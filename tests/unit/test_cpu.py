"""Processors: what nodes have in common, and where a guest can go."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from novacron.model.cpu import CpuModel, baseline
from novacron.model.fit import cannot_run
from novacron.model.node import AcceleratorKind
from novacron.model.vm import VmStatus
from novacron.qemu.abilities import argument
from tests.support.fleet import node

INTEL = CpuModel("GenuineIntel", 6, 85, 4, ("aes", "avx2", "sse4-2"))
FLAGS = st.frozensets(st.sampled_from("abcdef"))


@given(st.lists(FLAGS, min_size=1, max_size=5))
def test_a_baseline_is_the_processor_that_every_node_can_provide(flags: list[frozenset[str]]) -> None:
    every = [CpuModel("V", 6, number, 1, tuple(sorted(model))) for number, model in enumerate(flags)]
    common = baseline(every, every[-1])
    assert all(model.cannot_be(common) is None for model in every)
    assert set(common.flags) == set.intersection(*map(set, flags)) and common.model == 0
    assert baseline(reversed(every), every[0]) == common


def test_processors_of_other_vendors_do_not_count_and_get_no_guests() -> None:
    amd = CpuModel("AuthenticAMD", 25, 1, 1, ("sse4-2",))
    assert baseline([INTEL, amd], INTEL) == INTEL
    assert amd.cannot_be(INTEL) == "its processor is one of AuthenticAMD, not of GenuineIntel"
    poor = INTEL.without(["avx2", "aes"])
    assert poor.cannot_be(INTEL) == "its processor lacks aes, avx2" and INTEL.cannot_be(poor) is None
    assert poor.with_flags(["avx2"]).flags == ("avx2", "sse4-2")


def test_a_node_that_cannot_run_a_vm_as_started_is_refused_with_the_reason() -> None:
    record = node("a")
    plain = record.status.inventory
    assert plain is not None

    def has(**fields: object) -> dict[str, str]:
        inventory = msgspec.structs.replace(plain, **fields)
        other = msgspec.structs.replace(record, status=msgspec.structs.replace(record.status, inventory=inventory))
        reason = cannot_run(other, VmStatus(accelerator="tcg", machine="pc-q35-7.2", cpu=INTEL), runs=True)
        return {} if reason is None else {other.name: reason}

    kind = plain.accelerator.kind
    status = VmStatus(accelerator=kind, machine="pc-q35-7.2", cpu=INTEL)
    assert cannot_run(record, status, runs=True) is None, "what it has not said is not held against it"
    assert "no machine type pc-q35-7.2" in has(machines=("pc-q35-5.2",))["a"]
    assert (
        "lacks avx2"
        in has(
            cpu=INTEL.without(["avx2"]),
            accelerator=msgspec.structs.replace(plain.accelerator, kind=AcceleratorKind.TCG),
        )["a"]
    )
    assert (
        "under kvm, not tcg"
        in has(accelerator=msgspec.structs.replace(plain.accelerator, kind=AcceleratorKind.KVM))["a"]
    )


def test_qemu_gets_the_whole_processor_model_and_must_enforce_it() -> None:
    said = argument(AcceleratorKind.KVM, INTEL)
    assert said.startswith("base,vendor=GenuineIntel,family=6,model=85,stepping=4,")
    assert "enforce=on" in said and said.endswith("aes=on,avx2=on,sse4-2=on")
    assert argument(AcceleratorKind.KVM, None) == "host"
