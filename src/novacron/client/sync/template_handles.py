# Made of aio/template_handles.py by script/generate: change that, and run it.
"""Flavors and templates, as objects with methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from novacron.client.sync.handles import Findable, Followed, Listed, Removable, Watched
from novacron.client.typed import Flavor, Template

if TYPE_CHECKING:
    from typing import Unpack

    from novacron.client.bodies import (
        ConfigureFlavorBody,
        ConfigureTemplateBody,
        CreateFlavorBody,
        CreateTemplateBody,
    )


class FlavorHandle(Watched[Flavor], Removable[Flavor]):
    """A size that VMs are created in."""

    @property
    def name(self) -> str:
        return self.object.name

    def configure(self, *, if_unchanged: bool = False, **changes: Unpack[ConfigureFlavorBody]) -> Self:
        """Change it, for VMs that are created from now on."""
        return self._change(changes, if_unchanged)


class FlavorCollection(
    Listed[Flavor, FlavorHandle],
    Findable[Flavor, FlavorHandle],
    Followed[Flavor, FlavorHandle],
):
    """All flavors that the caller may use."""

    _type, _handle = Flavor, FlavorHandle

    def create(self, *, idempotency_key: str | None = None, **fields: Unpack[CreateFlavorBody]) -> FlavorHandle:
        return self._create(fields, idempotency_key)


class TemplateHandle(Watched[Template], Removable[Template]):
    """What VMs are created like."""

    @property
    def name(self) -> str:
        return self.object.name

    def configure(self, *, if_unchanged: bool = False, **changes: Unpack[ConfigureTemplateBody]) -> Self:
        """Change it, for VMs that are created from now on."""
        return self._change(changes, if_unchanged)


class TemplateCollection(
    Listed[Template, TemplateHandle],
    Findable[Template, TemplateHandle],
    Followed[Template, TemplateHandle],
):
    """All templates that the caller may use."""

    _type, _handle = Template, TemplateHandle

    def create(self, *, idempotency_key: str | None = None, **fields: Unpack[CreateTemplateBody]) -> TemplateHandle:
        """Create one, with a ``spec`` or like a ``vm``."""
        return self._create(fields, idempotency_key)
