"""Serial ports and USB devices as QEMU gets them, and what of them is refused."""

from __future__ import annotations

import msgspec
import pytest

from novacron.model.console import ConsoleKind, ConsoleLine
from novacron.model.devices import UsbDevice
from novacron.model.errors import InvalidInput
from novacron.model.vm import VmFields
from novacron.qemu import peripherals
from novacron.store import media


def test_serial_ports_come_after_the_consoles_in_order() -> None:
    assert peripherals.serials(()) == []
    assert peripherals.serials((7, 9)) == [
        "-chardev", "socket,id=serial1,fd=7,server=on,wait=off", "-serial", "chardev:serial1",
        "-chardev", "socket,id=serial2,fd=9,server=on,wait=off", "-serial", "chardev:serial2",
    ]  # fmt: skip
    lines = [ConsoleLine.of(ConsoleKind.SERIAL, number) for number in range(4)]
    assert [line.serial for line in lines] == [0, 1, 2, 3]
    assert ConsoleLine.of(ConsoleKind.DISPLAY, 0).serial is None


def test_usb_devices_have_a_controller_and_ports_of_their_own() -> None:
    assert peripherals.usb(()) == []
    assert peripherals.usb((UsbDevice.TABLET, UsbDevice.KEYBOARD)) == [
        "-device", "qemu-xhci,id=usb0",
        "-device", "usb-tablet,id=usb-tablet,bus=usb0.0,port=1",
        "-device", "usb-kbd,id=usb-keyboard,bus=usb0.0,port=2",
    ]  # fmt: skip


@pytest.mark.parametrize("fields", [{"serial_ports": 4}, {"serial_ports": -1}, {"usb": ["storage"]}])
def test_what_no_machine_has_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(fields, VmFields)


def test_two_usb_devices_of_one_kind_are_refused_by_field() -> None:
    with pytest.raises(InvalidInput, match="one USB tablet at most") as refused:
        media.check(VmFields(usb=(UsbDevice.TABLET, UsbDevice.TABLET)))
    assert refused.value.field == "usb"
