"""A boot sector that says a text: the smallest guest."""

from __future__ import annotations


def sector(text: str) -> bytes:
    """Return a boot sector that writes a text to the first serial line, and stands still."""
    code = bytes.fromhex("31c0 8ed8 be207c baf803 ac 84c0 7403 ee ebf8 f4 ebfd")
    return (code.ljust(0x20, b"\0") + f"{text}\r\n".encode() + b"\0").ljust(510, b"\0") + b"\x55\xaa"
