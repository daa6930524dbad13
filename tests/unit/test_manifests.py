"""Manifests: what is read, what is refused, and how objects differ from them; the schemas that say what fields take."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path

import pytest
import typer
import yaml
from hypothesis import given
from hypothesis import strategies as st

from novacron.cli import apply, kinds, manifests, objects, output
from novacron.cli.kinds import KINDS, kind_of
from novacron.cli.manifests import Document
from novacron.cli.output import Object
from novacron.cli.schemas import Schemas, near

ROOT = Path(__file__).parents[2]

LAUGHS = "kind: vm\nname: web\na0: &a0 [x, x]\n" + "\n".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)
)
"""A short text with very many values."""


@functools.cache
def schemas() -> Schemas:
    return Schemas(json.loads((ROOT / "docs/reference/openapi.json").read_text()))


def read(text: str, tmp_path: Path) -> list[Document]:
    file = tmp_path / "m.yaml"
    file.write_text(text)
    return manifests.read([file])


def document(text: str, tmp_path: Path) -> Document:
    (found,) = read(text, tmp_path)
    manifests.check_fields(found, schemas())
    return found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "it is no YAML"),
        ("- vm", "begin it with kind: vm"),
        ("name: web", "it has no kind"),
        ("kind: [vm]", "it has no kind"),
        ("kind: cloud", "there is no kind 'cloud'"),
        ("kind: migration", "a migration can't be in a manifest"),
        ("kind: token\nname: t", "a token can't be in a manifest"),
        ("kind: vm", "the vm has no name"),
        ("kind: snapshot\nname: s", "the snapshot has no vm"),
        ("kind: vm\nname: web\nproject: 5", "project must be text"),
        ("kind: vm\nname: web\nmemory_mb: 5", "no field 'memory_mb'; did you mean memory_mib?"),
        ("kind: user\nname: ann\npassword: x", "password is a secret"),
        ("kind: vm\nname: web\n---\nkind: vms\nname: web", "vm web is in"),
        ("kind: vm\nname: 2026-11-29", "neither text nor a number: put it in quotes"),
        ("kind: vm\nname: web\n5: x", "5 is not a field name"),
        ("kind: vm\nname: &a [*a]", "it is nested too deeply"),
        (LAUGHS, "more than 200000 values"),
        ("kind: vm\nname: " + "[" * 25 + "]" * 25, "it is nested too deeply"),
        ("kind: vm\nname: " + "[" * 5000, "can't be read"),
        ("kind: vm\nname: !!python/object:os.system x", "it is no YAML"),
    ],
)
def test_what_is_no_manifest_is_said_with_its_place(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter) as refused:
        for found in read(text, tmp_path):
            manifests.check_fields(found, schemas())
    assert str(tmp_path / "m.yaml") in refused.value.message and said in refused.value.message


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
    | st.sampled_from([kind.name for kind in KINDS]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["kind", "name", "vm", "project", "sites", "user", "nics"]) | st.integers(), inner, max_size=4
    ),
    max_leaves=8,
)  # fmt: skip


@given(st.lists(VALUES, max_size=3))
def test_any_yaml_is_a_manifest_or_refused_in_words(values: list[object]) -> None:
    text = yaml.safe_dump_all(values, allow_unicode=True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.stdin", io.StringIO(text))
        try:
            for found in manifests.read([Path("-")]):
                assert found.name and found.key
                manifests.check_fields(found, schemas())
                manifests.differences(found, {"name": "x", "spec": {}}, schemas())
        except typer.BadParameter as refused:
            assert "standard input" in refused.message


WEB: Object = {
    "id": "vm-1", "name": "web", "project": "default", "tags": ["shop"], "display_name": "", "description": "old",
    "spec": {"memory_mib": 256, "vcpus": 1, "image": "tiny", "ha": False, "memory_max_mib": 512, "nics": [
        {"network": "n", "address": "10.0.0.2", "mac": "52:54:00:00:00:01", "groups": []}]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "different"),
    [
        ("memory_mib: 256\ntags: [shop]", []),
        ("memory_mib: 512\ndescription: new", ["memory_mib", "description"]),
        ("image: other\nnode: host-a", []),
        ("nics: [{network: n}]", []),
        ("nics: [{network: n, address: null}]", []),
        ("nics: [{network: other}]", ["nics"]),
        ("nics: []", ["nics"]),
        ("ha: 0", ["ha"]),
        ("memory_max_mib: null", ["memory_max_mib"]),
        ("memory_mib: null", []),
        ("tags: []", ["tags"]),
    ],
)
def test_only_what_a_manifest_names_and_can_differ_is_compared(
    fields: str, different: list[str], tmp_path: Path
) -> None:
    found = document(f"kind: vm\nname: web\n{fields}", tmp_path)
    assert manifests.is_of(found, WEB)
    assert list(manifests.differences(found, WEB, schemas())) == different


@pytest.mark.parametrize(
    ("spec", "different"),
    [
        ("{image: tiny, nics: []}", True),
        ("{image: tiny, tpm: true}", False),
        ("{image: other, tpm: true}", True),
        ("{image: tiny}", True),
        ("{image: tiny, tpm: true, placement: {spread: web}}", True),
    ],
)
def test_what_is_replaced_as_a_whole_is_compared_as_a_whole(spec: str, different: bool, tmp_path: Path) -> None:
    item: Object = {"name": "web", "project": None, "spec": {"image": "tiny", "tpm": True, "disk_mib": None}}
    found = document(f"kind: template\nname: web\nshared: true\nspec: {spec}", tmp_path)
    assert (list(manifests.differences(found, item, schemas())) == ["spec"]) is different


@pytest.mark.parametrize(
    ("text", "item", "same"),
    [
        ("kind: link\nsites: [b, a]", {"sites": ["a", "b"], "spec": {}}, True),
        ("kind: link\nsites: [b, c]", {"sites": ["a", "b"], "spec": {}}, False),
        ("kind: grant\nuser: ann\nrole: member", {"user_name": "ann", "project": None}, True),
        ("kind: grant\nuser: ann\nrole: member\nproject: p", {"user_name": "ann", "project": "q"}, False),
        ("kind: forward\nvm: web\nvm_port: 80", {"vm_name": "web", "vm_port": 80, "protocol": "tcp"}, True),
        ("kind: forward\nvm: web\nvm_port: 80", {"vm_name": "web", "vm_port": 80, "protocol": "udp"}, False),
        ("kind: snapshot\nvm: web\nname: s", {"vm_name": "web", "name": "s"}, True),
    ],
)  # fmt: skip
def test_a_manifest_is_about_the_object_with_its_identity(text: str, item: Object, same: bool, tmp_path: Path) -> None:
    (found,) = read(text, tmp_path)
    assert manifests.is_of(found, item) is same


def test_a_field_that_cant_change_is_said_before_anything_is_done(tmp_path: Path) -> None:
    found = document("kind: vm\nname: web\nnics: []\nmemory_mib: 512", tmp_path)
    changes = manifests.differences(found, WEB, schemas())
    step = apply.PlannedStep("change", found.kind, "web", "", found, WEB, changes)
    assert apply._refused([step], schemas()) == ["vm web: nics can't change"]
    node = document("kind: node\nname: host-z", tmp_path)
    missing = apply.PlannedStep("create", node.kind, "host-z", "", node)
    assert apply._refused([missing], schemas()) == ["there is no node host-z, and a file can't create one"]


def test_a_plan_shows_what_changes(capsys: pytest.CaptureFixture[str]) -> None:
    vm = kind_of("vm")
    apply.show([
        apply.PlannedStep("create", vm, "new", ""), apply.PlannedStep("keep", vm, "same", ""),
        apply.PlannedStep("change", vm, "web", "shop", changes={"description": ("é", "x" * 300)}),
        apply.PlannedStep("delete", vm, "old", "shop"),
    ])  # fmt: skip
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ["+ vm new", "~ vm web in project shop"]
    assert shown[2].startswith('    description: "é" -> "xxx') and shown[2].endswith("...") and len(shown[2]) < 300
    assert shown[3:] == ["- vm old in project shop", "1 to create, 1 to change, 1 to delete, 1 as they should be"]


def test_a_plan_for_programs_has_what_is_and_what_is_wanted() -> None:
    step = apply.PlannedStep("change", kind_of("vm"), "web", "shop", changes={"memory_mib": (512, 1024)})
    assert apply._described([step]) == [
        {"action": "change", "kind": "vm", "name": "web", "project": "shop",
         "changes": {"memory_mib": {"has": 512, "wanted": 1024}}},
    ]  # fmt: skip


def test_what_was_not_done_is_counted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    vm = kind_of("vm")
    results = iter([None, KeyboardInterrupt()])

    def perform(*_: object, quiet: bool) -> None:
        assert not quiet
        result = next(results)
        if result is not None:
            raise result

    monkeypatch.setattr(apply, "perform", perform)
    steps = [apply.PlannedStep("create", vm, name, "") for name in "abc"]
    with pytest.raises(typer.Exit) as ended, output.errors():
        apply._perform(None, steps, schemas())  # type: ignore[arg-type]  # nothing is sent
    assert ended.value.exit_code == output.EXIT_INTERRUPTED
    assert capsys.readouterr().err == "2 of 3 were not done: fix the cause, then apply the files again\n"


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_each_kind_has_its_schemas_and_columns(kind: kinds.ObjectKind) -> None:
    assert kind.list_columns() and kind.detail_columns() and schemas().fields(kind.object)
    for named in filter(None, (kind.create, kind.change)):
        assert schemas().fields(named), f"there is no schema {named}"
    for text in (kind.name, kind.api, kind.name.upper(), kind.name.replace("-", ""), *kind.other_names):
        assert kind_of(text) is kind


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.create and kind.name not in ("token", "link")])
def test_what_a_manifest_says_can_be_compared_with_what_there_is(kind: kinds.ObjectKind) -> None:
    """Else each apply would change it again: name what is only said at creation in AT_CREATION."""
    shown = schemas().fields(kind.object)
    known = {*shown, *schemas().below(shown.get("spec", {})), *manifests.identity_of(kind)}
    known |= {*manifests.AT_CREATION.get(kind.name, ()), *manifests.SECRET.get(kind.name, ())}
    assert set(schemas().fields(kind.create)) - known == set()


def test_types_are_said_in_words() -> None:
    vm = {**schemas().fields("ConfigureVm"), **schemas().fields("CreateVm")}
    said = {field: schemas().type_of(schema) for field, schema in vm.items()}
    assert said["vcpus"] == "integer (1 to 256)" and said["memory_max_mib"].endswith(" or null")
    assert said["tags"].startswith("list of string") and said["firmware"].startswith("one of ")
    assert "labels" in schemas().below(vm["placement"]) and "network" in schemas().below(vm["nics"])
    assert "name" in schemas().required("CreateVm")
    loop = Schemas({"components": {"schemas": {"A": {"$ref": "#/components/schemas/A"}}}})
    assert loop.type_of({"$ref": "#/components/schemas/A"}) == "anything", "a schema that names itself ends"


@pytest.mark.parametrize(
    ("name", "said"), [("memry", "did you mean memory?"), ("zzz", "there are: cpu, memory")]
)  # fmt: skip
def test_a_wrong_name_is_answered_with_the_nearest(name: str, said: str) -> None:
    assert near(name, ["cpu", "memory"]) == said


def test_an_edit_changes_what_differs_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "edited.yaml"
    before: Object = {"size_mib": 64, "tags": ["a"], "placement": {"spread": "x", "labels": {}}}
    file.write_text("# a comment\nsize_mib: 128\ntags: [a]\nplacement: {labels: {}}\n")
    assert objects._changes(file, before) == {
        "size_mib": (64, 128), "placement": ({"spread": "x", "labels": {}}, {"labels": {}}),
    }  # fmt: skip
    file.write_text("sizemib: 5\n")
    with pytest.raises(typer.BadParameter, match="sizemib can't be set here; did you mean size_mib"):
        objects._changes(file, before)


def test_what_a_kind_is_is_explained_on_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(objects, "Client", lambda: None)
    monkeypatch.setattr("novacron.cli.schemas.read", lambda client: schemas())
    objects.explain("vm")
    shown = capsys.readouterr().out
    assert "\\n" not in shown and "\n\nonly shown:\n" in shown
    lines = {line.split()[0]: line for line in shown.splitlines() if line}
    assert " yes " in lines["power"] and " yes " in lines["memory_mib"] and " yes " not in lines["nics"]
    assert "name (required)" in shown
    with pytest.raises(typer.BadParameter, match="did you mean placement"):
        objects.explain("vm.placment.labels")
