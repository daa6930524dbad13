"""``vm create`` with an image that only a catalogue has."""

from __future__ import annotations

from typing import Any, cast

import pytest
import typer

from novacron.cli import vm_create
from novacron.client import ApiError, Client

MISSING = {"status": 400, "code": "invalid_input", "field": "image", "detail": "no node holds an image"}
CONFLICT = {"status": 409, "code": "conflict", "field": "name", "detail": "it is being imported"}
IMPORT = {"id": "import-1", "spec": {"name": "debian-12"}, "node": "a", "finished_at": "now", "error": "digest"}


class Api:
    """A server whose catalogue has debian-12. ``phase``: how imports end; ``begun``: whether one is under way."""

    def __init__(self, phase: str = "done", begun: bool = False) -> None:
        self.phase, self.begun, self.images = phase, begun, set[str]()
        self.did: list[str] = []

    def create_vm(self, **fields: Any) -> dict[str, Any]:
        if fields["image"] not in self.images:
            raise ApiError(MISSING)
        return fields

    def catalogue_images(self) -> dict[str, Any]:
        return {"items": [{"name": "debian-12", "aliases": ["bookworm"]}], "problems": []}

    def import_image(self, name: str, **fields: Any) -> dict[str, Any]:
        self.did.append(f"{name} of {fields['catalogue_image']}")
        if self.begun:
            raise ApiError(CONFLICT)
        return IMPORT

    def list(self, kind: str, **_: Any) -> list[dict[str, Any]]:
        return [IMPORT] if self.begun else []

    def wait(self, *_: Any) -> dict[str, Any]:
        if self.phase == "done":
            self.images |= {"debian-12", "bookworm"}
        return {**IMPORT, "phase": self.phase}


def create(api: Api, image: str = "debian-12", *, pull: bool = True) -> dict[str, Any]:
    return vm_create._create(cast(Client, api), {"name": "web", "image": image}, 10, pull=pull)


@pytest.mark.parametrize("begun", [False, True])
def test_an_image_that_a_catalogue_has_is_imported_first(begun: bool) -> None:
    api = Api(begun=begun)
    assert create(api)["name"] == "web"
    assert create(api)["name"] == "web"
    assert api.did == ["debian-12 of debian-12"]
    assert create(Api(), "bookworm")["image"] == "bookworm"


def test_nothing_is_imported_unasked_or_unknown() -> None:
    for image, pull in (("debian-12", False), ("none", True)):
        api = Api()
        with pytest.raises(ApiError, match="no node holds"):
            create(api, image, pull=pull)
        assert api.did == []


def test_no_vm_is_created_when_its_image_does_not_come(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        create(Api("failed"))
    assert "was not imported: digest" in capsys.readouterr().err
