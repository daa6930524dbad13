# Made of aio/images.py by script/generate: change that, and run it.
"""Calls about images: imports, uploads, copies."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from novacron.client import protocol
from novacron.client.errors import Unreachable
from novacron.client.protocol import Object, quoted, without_none
from novacron.client.sync.connection import Connection


class ImageCalls(Connection):
    """Images: import, copy and delete them."""

    def import_image(self, name: str, file: Path | None = None, **fields: object) -> Object:
        """Begin to import an image from ``file``, which is uploaded and hashed here, or from ``url=``, ``path=`` or
        ``catalogue_image=``.

        Other fields as in ``POST /api/v1/imports``. ``wait`` waits for its end.
        """
        if file is None:
            return self.begin_import(name, **fields)
        if fields.get("sha256") is None:
            fields["sha256"] = self._transport.run(protocol.sha256_of, file)
        image_import = self.begin_import(name, **fields, size_bytes=file.stat().st_size)
        return self.upload(image_import, file)

    def catalogue_images(self) -> Object:
        """Return what the server's catalogues have: ``items``, and ``problems`` with catalogues that can't be read."""
        return self._object("GET", "/api/v1/catalogue-images")

    def configure_image(self, name: str, **changes: object) -> Object:
        """Change an image's ``display_name``, ``description`` or ``tags``."""
        return self._object("PATCH", f"/api/v1/images/{quoted(name)}", changes)

    def begin_import(self, name: str, **fields: object) -> Object:
        """Begin to import an image; fields as in ``POST /api/v1/imports``, those that are None left out."""
        return self._object("POST", "/api/v1/imports", {"name": name, **without_none(fields)})

    def upload(
        self, image_import: Object, file: Path, on_progress: Callable[[int], None] = lambda bytes_held: None,
        offset: int = 0,
    ) -> Object:  # fmt: skip
        """Send what an import lacks of its file, from where it stands; ``on_progress`` gets how much has arrived.

        What is uploaded begins at ``offset`` in ``file``.
        """
        bytes_held, size_bytes, fruitless = image_import["held_bytes"], image_import["spec"]["size_bytes"], 0
        while bytes_held < size_bytes:
            count = min(protocol.PIECE_BYTES, size_bytes - bytes_held)
            piece = self._transport.run(protocol.read_piece, file, offset + bytes_held, count)
            path = f"/api/v1/imports/{quoted(image_import['id'])}/data?offset={bytes_held}"
            now_held = int((self.request("PUT", path, raw=piece))["held_bytes"])
            fruitless = fruitless + 1 if now_held <= bytes_held else 0
            if fruitless > protocol.ATTEMPTS:
                raise Unreachable(f"the node accepted only {now_held} bytes of {file}")
            bytes_held = now_held
            on_progress(bytes_held)
        return self.get("imports", image_import["id"])

    def copy_image(self, name: str, target: str, source: str | None = None) -> Object:
        """Begin to copy an image to a node. ``wait_for_copy`` waits for its end."""
        return self.act("images", name, "copy", {"target": target, "source": source})

    def wait_for_copy(self, copy: Object, timeout_s: float) -> Object:
        """Return the event that says how a copy ended. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for event in self.list("events", object=copy["target"]):
                if event["message"].endswith(f"({copy['id']})"):
                    return event
            self._transport.pause(min(protocol.COPY_POLL_S, timeout_s))
        raise TimeoutError(f"image {copy['image']} has not arrived after {timeout_s:.0f} s; see: novacron events")

    def delete_image(self, name: str, node: str | None = None) -> None:
        """Remove an image from all nodes, or from one."""
        on_node = f"?{protocol.query({'node': node})}" if node else ""
        self.request("DELETE", f"/api/v1/images/{quoted(name)}{on_node}")
