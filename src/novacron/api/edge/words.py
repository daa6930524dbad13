"""What is wrong with a value, in words: the validator names types and regular expressions."""

from __future__ import annotations

import re

PATTERNS = {
    r"^[\x20-\x7e]*\Z": "must have nothing but ASCII letters, digits, punctuation and spaces, in one line",
    r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z": (
        "must have 1 to 63 lower-case letters, digits and hyphens, with no hyphen at its beginning or end"
    ),
    r"^[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?\Z": (
        "must have 1 to 63 lower-case letters, digits, dots, slashes, hyphens and _, with a letter or digit at its"
        " beginning and end"
    ),
    r"^[A-Za-z0-9._-]{0,63}\Z": "must have at most 63 letters, digits, dots, hyphens and _",
    r"^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]\Z": "must be a PCI address such as 0000:03:00.0, in lower case",
    r"^[0-9a-f]{4}:[0-9a-f]{4}\Z": "must be a PCI id of vendor and device such as 8086:10fb, in lower case",
    r"^[0-9]{1,5}(-[0-9]{1,5})?\Z": "must be a port such as 443, or a range of ports such as 8000-8010",
    r"^[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}\Z": "must be a MAC address such as 06:1f:02:aa:00:10",
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,14}\Z": "must be the name of a network interface such as br0",
    r"^[a-zA-Z0-9](?:[a-zA-Z0-9._@+-]{0,61}[a-zA-Z0-9])?\Z": (
        "must have 1 to 63 letters, digits, dots, hyphens and the characters _ @ +, with a letter or digit at its"
        " beginning and end"
    ),
    r"^[a-z0-9][a-z0-9-]{0,39}\Z": "must be the name of a CPU feature such as avx2",
    r"^pc-(i440fx|q35)-[0-9]{1,2}\.[0-9]{1,2}\Z": "must be a machine type with its version such as pc-q35-7.2",
    r"^(nic|net|hot)[0-7]\Z": "must be the name of a network interface in QEMU such as nic0",
    r"^[a-z][a-z0-9-]{0,63}\Z": "must be the name of a device in QEMU such as disk0-device",
    r"^[0-9a-f]{64}\Z": "must have 64 hexadecimal digits, in lower case",
    r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?){0,7}\Z": (
        "must be a host name such as db-1 or db-1.example.org"
    ),
    r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?){0,7}\Z": (
        "must be a domain such as example.org, in lower case"
    ),
    r"^(key-[0-9a-f]{16})?\Z": "must be the id of a key such as key-0123456789abcdef",
    r"^([0-9a-f]{16})?\Z": "must have 16 hexadecimal digits, in lower case, or none",
    r"^repo-[0-9a-f]{16}\Z": "must be the id of a repository such as repo-0123456789abcdef",
    r"^replica-[0-9a-f]{16}\Z": "must be the id of a replica such as replica-0123456789abcdef",
    r"^([0-9a-f]{64})?\Z": "must be the id of a snapshot: 64 lower-case hexadecimal digits, or empty",
    r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}\Z": (
        "must have 1 to 64 letters, digits and the characters . _ + - after the first"
    ),
    r"^([A-Za-z0-9][A-Za-z0-9._+-]{0,63})?\Z": (
        "must have at most 64 letters, digits and the characters . _ + - after the first"
    ),
    r"^[ A-Za-z0-9!._-]{0,12}\Z": "must have at most 12 letters, digits, spaces and the characters ! . _ -",
    r"^([A-Za-z0-9._+:/#()-]([A-Za-z0-9._+:/#() -]{0,62}[A-Za-z0-9._+:/#()-])?)?\Z": (
        "must have at most 64 letters, digits, spaces and the characters . _ + : / # ( ) -, with no space at its"
        " beginning or end"
    ),
    r"^[^\x00]*\Z": "must not have zero bytes",
    r"^[A-Za-z_][A-Za-z0-9_]*=[^\x00]*\Z": "must be a variable and its value such as LANG=C",
    r"^([01][0-9]|2[0-3]):[0-5][0-9]\Z": "must be a time of day such as 08:30",
    r"^[^\s,\x00-\x20\x7f-\xa0\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]{1,63}\Z": (
        "must have 1 to 63 characters, with no spaces, commas or invisible characters"
    ),
}
"""What each pattern of a request's fields demands."""
TYPES = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "object": "a JSON object",
    "array": "a list", "null": "null", "bytes": "text in base64", "datetime": "a time", "date": "a date",
}  # fmt: skip
LIMITS = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}


def in_words(message: str) -> str:
    """Return what the validator says as a sentence for people; unchanged if it is of another kind."""
    if match := re.fullmatch(r"Expected `str` matching regex ('.*'|\".*\")", message, re.DOTALL):
        pattern = match[1][1:-1].replace("\\\\", "\\")
        return PATTERNS.get(pattern, f"must match {pattern}")
    if match := re.fullmatch(r"Expected `(.+)` of length (>=|<=) ([0-9]+)", message):
        what = "characters" if match[1] == "str" else "entries"
        return f"must have {LIMITS[match[2]]} {match[3]} {what}"
    if match := re.fullmatch(r"Expected `(?:int|float)` (>=|<=|>|<) (-?[0-9.e+]+)", message):
        return f"must be {LIMITS[match[1]]} {match[2]}"
    if match := re.fullmatch(r"Expected `([a-z |]+)`, got `([a-z]+)`", message):
        expected = [TYPES.get(kind, kind) for kind in match[1].split(" | ")]
        return f"must be {' or '.join(expected)}, not {TYPES.get(match[2], match[2])}"
    if match := re.fullmatch(r"Invalid enum value (.+)", message):
        return f"{match[1]} is none of the allowed values"
    if match := re.fullmatch(r"Object missing required field `(.+)`", message):
        return "is missing"
    if match := re.fullmatch(r"Object contains unknown field `(.+)`", message):
        return "there is no such field"
    return message
