"""Display names, descriptions and tags: of every kind of object, by one list."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from novacron.client import typed
from novacron.model.errors import InvalidInput
from novacron.model.metadata import FIELDS, KINDS, Metadata, MetadataChanges, canonical_tags, wanted_tags

DOCUMENT = Path("docs/reference/openapi.json")


def test_every_kind_that_has_metadata_can_be_changed_and_its_lists_filtered() -> None:
    document = json.loads(DOCUMENT.read_text())
    types = {type_: kind for type_, kind in typed.KINDS.items() if issubclass(type_, Metadata)}
    assert {kind.removesuffix("es" if kind.endswith("esses") else "s") for kind in types.values()} == set(KINDS)
    paths = document["paths"]
    for kind in types.values():
        collection = "/api/v1/vms/{ref}/snapshots" if kind == "snapshots" else f"/api/v1/{kind}"
        assert any(parameter["name"] == "tag" for parameter in paths[collection]["get"]["parameters"]), kind
        [changing] = [
            operations["patch"] for path, operations in paths.items()
            if "patch" in operations and path.rpartition("/")[0] == collection
        ]  # fmt: skip
        reference = changing["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        fields = document["components"]["schemas"][reference.rpartition("/")[2]]["properties"]
        assert set(FIELDS) <= set(fields), kind


@pytest.mark.parametrize("tag", ["web", "grün", "本番", "a:b=c/d", "x" * 63, "📚"])
def test_a_tag_is_any_word(tag: str) -> None:
    assert msgspec.convert({"tags": [tag]}, MetadataChanges).tags == (tag,)


@pytest.mark.parametrize("tag", ["", "a b", "a,b", "a\n", "\0", "\x1b[2J", "a\u202eb", "\u200b", "\u2066x", "x" * 64])
def test_what_could_pass_for_another_tag_is_refused(tag: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="tags"):
        msgspec.convert({"tags": [tag]}, MetadataChanges)


def test_tags_that_look_alike_are_one() -> None:
    assert canonical_tags(["u\u0308ber", "\u00fcber", "x", "x"]) == ("\u00fcber", "x")
    assert wanted_tags("u\u0308ber,x") == ("\u00fcber", "x")
    for text in ("", ",", "a,", ",".join("a" * 40)):
        with pytest.raises(InvalidInput, match="not a list of tags"):
            wanted_tags(text)
