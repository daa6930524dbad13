"""Pages that are written into another process's memory (process_vm_writev(2))."""

from __future__ import annotations

import ctypes
import errno
import os
import select
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from novacron.qemu.memory import PAGE

PAGES_MAX = 1024
"""Pages of one call: Linux takes so many parts of memory (IOV_MAX)."""
_libc = ctypes.CDLL(None, use_errno=True)
_read, _write = _libc.process_vm_readv, _libc.process_vm_writev
for _function in (_read, _write):
    _function.restype = ctypes.c_ssize_t
    _function.argtypes = (
        ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong
    )  # fmt: skip


class PageRun(NamedTuple):
    """Pages in a row in the other process, from ``address`` on. In this process the first is at ``source``, and each
    further one ``stride`` bytes after the last: with 0 all are the same."""

    address: int
    pages: int
    source: int
    stride: int


def address_of(data: bytes) -> int:
    """Return where this process has these bytes, for as long as it holds them."""
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0


class ProcessMemory:
    """Another process's memory: of that process, also when its id is used again."""

    def __init__(self, pid: int) -> None:
        """Raises OSError when there is no such process."""
        self._pid = pid
        self._process = os.pidfd_open(pid)
        self._ended = select.poll()
        self._ended.register(self._process, select.POLLIN)

    def __del__(self) -> None:
        process = getattr(self, "_process", None)
        if process is not None:
            os.close(process)

    def check_writable(self, address: int) -> None:
        """Raise OSError without the right to write there: a byte is read and written as it is."""
        byte = ctypes.create_string_buffer(1)
        here, there = array("Q", (ctypes.addressof(byte), 1)), array("Q", (address, 1))
        for function in (_read, _write):
            self._transfer(function, here, there)

    def write(self, runs: Sequence[PageRun]) -> None:
        """Write all pages, in order. Raises OSError, also when some were written."""
        for batch in _batches(runs):
            left = batch
            while left:
                pages = self._write_some(left) // PAGE
                if not pages:
                    raise OSError(errno.EFAULT, "a page of the guest's memory can't be written")
                left = _after(left, pages)

    def _write_some(self, runs: Sequence[PageRun]) -> int:
        """Write pages of one call; return how many bytes were written."""
        here, there = array("Q"), array("Q")
        for address, count, source, stride in runs:
            parts = array("Q", (source, PAGE)) * count
            if stride:
                parts[::2] = array("Q", range(source, source + count * stride, stride))
            here += parts
            there.extend((address, count * PAGE))
        return self._transfer(_write, here, there)

    def _transfer(self, function: ctypes._NamedFuncPointer, here: array[int], there: array[int]) -> int:
        if self._ended.poll(0):
            raise ProcessLookupError(errno.ESRCH, "QEMU has ended")
        count: int = function(
            self._pid, here.buffer_info()[0], len(here) // 2, there.buffer_info()[0], len(there) // 2, 0
        )  # fmt: skip
        if count < 0:
            raise OSError(ctypes.get_errno(), f"QEMU's memory: {os.strerror(ctypes.get_errno())}")
        return count


def _batches(runs: Sequence[PageRun]) -> Iterator[list[PageRun]]:
    """Return the runs in groups of at most ``PAGES_MAX`` pages."""
    batch: list[PageRun] = []
    room = PAGES_MAX
    for address, all_pages, source, stride in runs:
        done = 0
        while done < all_pages:
            count = min(all_pages - done, room)
            batch.append(PageRun(address + done * PAGE, count, source + done * stride, stride))
            done, room = done + count, room - count
            if not room:
                yield batch
                batch, room = [], PAGES_MAX
    if batch:
        yield batch


def _after(runs: Sequence[PageRun], pages: int) -> list[PageRun]:
    """Return the runs without their first pages."""
    left = []
    for address, count, source, stride in runs:
        done = min(count, pages)
        pages -= done
        if done < count:
            left.append(PageRun(address + done * PAGE, count - done, source + done * stride, stride))
    return left
