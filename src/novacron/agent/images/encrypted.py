"""Images that are encrypted with the key of their project, before anybody sees them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from novacron.disk import luks
from novacron.disk.errors import Unacceptable
from novacron.disk.files import sync
from novacron.disk.images import ImageFile, describe
from novacron.disk.qemu_img import ImgFailed
from novacron.model.waiting import WaitCode
from novacron.wire import messages as wire

ENCRYPT_S_MAX = 6 * 3600.0


async def make(import_: wire.ImportWanted, plain: Path, target: Path) -> ImageFile:
    """Encrypt an image's disk, and return how the manifest describes it. Raises Unacceptable, OSError."""
    if import_.key is None or import_.key.id != import_.encryption_key:
        why = f"the server can't unwrap its key {import_.encryption_key}; see the server's log"
        raise Unacceptable(why, WaitCode.STEP_FAILED)
    await asyncio.to_thread(target.unlink, missing_ok=True)
    try:
        await luks.encrypt(plain, target, import_.key, ENCRYPT_S_MAX)
    except ImgFailed as error:
        raise Unacceptable(f"it can't be encrypted: {error}", WaitCode.STEP_FAILED) from error
    await sync(target)
    return await asyncio.to_thread(describe, target)
