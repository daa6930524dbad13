"""The catalogues of images that this server's settings name: fetched when somebody asks, and kept for a while."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path

import msgspec
import urllib3

from novacron.model import catalogue
from novacron.model.catalogue import CatalogueImage
from novacron.model.errors import InvalidInput
from novacron.telemetry import logs

log = logs.get(__name__)

FRESH_S = 900.0
RETRY_S = 30.0
"""After a catalogue could not be fetched."""
TIMEOUT_S = 15.0
DOCUMENT_BYTES_MAX = 32 << 20
SIGNATURE_BYTES_MAX = 4096
LISTS_MAX = 4
SUFFIX = ".minisig"


class CatalogueSettings(msgspec.Struct, frozen=True):
    """Where catalogues are: files, URLs of plain ones (they end in .json), URLs of simplestreams servers. ``keys``: the
    public keys of those who sign them."""

    sources: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    ca: Path | None = None
    """Authority of the servers' certificates, if not a public one."""


class CatalogueProblem(msgspec.Struct, frozen=True):
    """Why a catalogue lists nothing."""

    catalogue: str
    error: str


class CatalogueListing(msgspec.Struct, frozen=True):
    """What all catalogues have."""

    items: list[CatalogueImage]
    problems: list[CatalogueProblem]


class _Unfetched(Exception):
    """A document can't be had: says why."""


class Catalogues:
    """Those of one server."""

    def __init__(self, settings: CatalogueSettings) -> None:
        """Raises InvalidInput if a key is none, OSError."""
        for key in settings.keys:
            catalogue.public_key(key)
        self._settings = settings
        context = ssl.create_default_context(cafile=settings.ca)
        self._http = urllib3.PoolManager(ssl_context=context, timeout=TIMEOUT_S, retries=False, maxsize=2)
        self._listed = CatalogueListing([], [])
        self._until_s = 0.0
        self._lock = asyncio.Lock()

    async def listed(self) -> CatalogueListing:
        """Return all images, by name; where several catalogues have a name, the first counts."""
        async with self._lock:
            if self._settings.sources and time.monotonic() >= self._until_s:
                self._listed = await asyncio.to_thread(self._read_all)
                self._until_s = time.monotonic() + (RETRY_S if self._listed.problems else FRESH_S)
        return self._listed

    async def find(self, name: str) -> CatalogueImage:
        """Return the image of a name or an alias. Raises InvalidInput."""
        listed = await self.listed()
        for image in listed.items:
            if image.name == name:
                return image
        for image in listed.items:
            if name in image.aliases:
                return image
        unread = "".join(f"; {problem.catalogue}: {problem.error}" for problem in listed.problems)
        why = f"no catalogue has an image {name!r}" if self._settings.sources else "this server has no catalogue"
        raise InvalidInput(why + unread, field="catalogue_image", hint="see: novacron image list --remote")

    def _read_all(self) -> CatalogueListing:
        images: dict[str, CatalogueImage] = {}
        problems = []
        for source in self._settings.sources:
            try:
                for image in self._read(source):
                    images.setdefault(image.name, image)
            except (InvalidInput, _Unfetched) as error:
                log.warning("a catalogue of images can't be used", catalogue=source, error=str(error))
                problems.append(CatalogueProblem(source, str(error)))
        return CatalogueListing([images[name] for name in sorted(images)], problems)

    def _read(self, source: str) -> list[CatalogueImage]:
        """Raises InvalidInput, _Unfetched."""
        if "://" not in source:
            return catalogue.parse(_file(Path(source)), source, signed=False)
        if source.partition("?")[0].endswith(".json"):
            data = self._get(source, DOCUMENT_BYTES_MAX)
            catalogue.verify(data, self._get(source + SUFFIX, SIGNATURE_BYTES_MAX), self._settings.keys)
            return catalogue.parse(data, source, signed=True)
        index = self._get(catalogue.beneath(source, "streams/v1/index.json"), DOCUMENT_BYTES_MAX)
        images: dict[str, CatalogueImage] = {}
        for path in catalogue.product_lists(index)[:LISTS_MAX]:
            for image in catalogue.parse_products(
                self._get(catalogue.beneath(source, path), DOCUMENT_BYTES_MAX), source
            ):
                images.setdefault(image.name, image)
        return list(images.values())

    def _get(self, url: str, bytes_max: int) -> bytes:
        """Return a document of a web server's, which may not send us elsewhere. Raises _Unfetched."""
        if not url.startswith("https://"):
            raise _Unfetched("its URL does not begin with https://")
        try:
            answer = self._http.request("GET", url, redirect=False, preload_content=False)
            try:
                data = answer.read(bytes_max + 1)
            finally:
                answer.close()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _Unfetched(f"{url} can't be fetched: {error}") from error
        if answer.status != 200:
            raise _Unfetched(f"{url} can't be fetched: the server answered {answer.status}")
        if len(data) > bytes_max:
            raise _Unfetched(f"{url} has more than {bytes_max} bytes")
        return data


def _file(path: Path) -> bytes:
    """Raises _Unfetched."""
    try:
        with path.open("rb") as file:
            data = file.read(DOCUMENT_BYTES_MAX + 1)
    except OSError as error:
        raise _Unfetched(f"it can't be read: {error.strerror}") from error
    if len(data) > DOCUMENT_BYTES_MAX:
        raise _Unfetched(f"it has more than {DOCUMENT_BYTES_MAX} bytes")
    return data
