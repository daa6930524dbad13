"""Flavors and templates, as objects with methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from novacron.client.aio.handles import AsyncFindable, AsyncFollowed, AsyncListed, AsyncRemovable, AsyncWatched
from novacron.client.typed import Flavor, Template

if TYPE_CHECKING:
    from typing import Unpack

    from novacron.client.bodies import (
        ConfigureFlavorBody,
        ConfigureTemplateBody,
        CreateFlavorBody,
        CreateTemplateBody,
    )


class AsyncFlavorHandle(AsyncWatched[Flavor], AsyncRemovable[Flavor]):
    """A size that VMs are created in."""

    @property
    def name(self) -> str:
        return self.object.name

    async def configure(self, *, if_unchanged: bool = False, **changes: Unpack[ConfigureFlavorBody]) -> Self:
        """Change it, for VMs that are created from now on."""
        return await self._change(changes, if_unchanged)


class AsyncFlavorCollection(
    AsyncListed[Flavor, AsyncFlavorHandle],
    AsyncFindable[Flavor, AsyncFlavorHandle],
    AsyncFollowed[Flavor, AsyncFlavorHandle],
):
    """All flavors that the caller may use."""

    _type, _handle = Flavor, AsyncFlavorHandle

    async def create(
        self, *, idempotency_key: str | None = None, **fields: Unpack[CreateFlavorBody]
    ) -> AsyncFlavorHandle:
        return await self._create(fields, idempotency_key)


class AsyncTemplateHandle(AsyncWatched[Template], AsyncRemovable[Template]):
    """What VMs are created like."""

    @property
    def name(self) -> str:
        return self.object.name

    async def configure(self, *, if_unchanged: bool = False, **changes: Unpack[ConfigureTemplateBody]) -> Self:
        """Change it, for VMs that are created from now on."""
        return await self._change(changes, if_unchanged)


class AsyncTemplateCollection(
    AsyncListed[Template, AsyncTemplateHandle],
    AsyncFindable[Template, AsyncTemplateHandle],
    AsyncFollowed[Template, AsyncTemplateHandle],
):
    """All templates that the caller may use."""

    _type, _handle = Template, AsyncTemplateHandle

    async def create(
        self, *, idempotency_key: str | None = None, **fields: Unpack[CreateTemplateBody]
    ) -> AsyncTemplateHandle:
        """Create one, with a ``spec`` or like a ``vm``."""
        return await self._create(fields, idempotency_key)
