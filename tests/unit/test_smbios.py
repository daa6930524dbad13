"""What a guest reads of its machine, as its user wrote it and in no other form."""

from __future__ import annotations

import msgspec
import pytest

from novacron.api.edge.words import in_words
from novacron.model.vm import VmFields
from novacron.qemu.command import _smbios


def test_a_guest_reads_what_was_given_and_else_what_qemu_says() -> None:
    assert _smbios({"manufacturer": "", "serial": "", "asset": ""}) == []
    assert _smbios({"manufacturer": "Shop (1)", "serial": "A-7", "asset": "T#9"}) == [
        "-smbios", "type=1,manufacturer=Shop (1),serial=A-7",
        "-smbios", "type=3,manufacturer=Shop (1),serial=A-7,asset=T#9",
    ]  # fmt: skip
    assert _smbios({"manufacturer": "", "serial": "", "asset": "9"}) == ["-smbios", "type=3,asset=9"]


@pytest.mark.parametrize("text", [" a", "a ", "a,b", "a\n", "a\0", "ü", 'a"', "x" * 65])
@pytest.mark.parametrize("field", ["smbios_manufacturer", "smbios_serial", "smbios_asset_tag"])
def test_what_qemu_or_a_table_would_read_as_something_else_is_refused_in_words(field: str, text: str) -> None:
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.convert({field: text}, VmFields)
    assert "at most 64 letters" in in_words(str(refused.value).partition(" - at ")[0])
