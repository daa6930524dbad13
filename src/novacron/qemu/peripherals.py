"""Serial ports beyond the console's, and USB devices, as arguments of QEMU.

Sources: QEMU's docs/system/devices/usb.rst, and ``-serial`` in qemu(1): a PC has four serial ports at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from novacron.model.devices import UsbDevice

USB = "usb0"
"""The controller of all USB devices."""
DRIVERS = {UsbDevice.TABLET: "usb-tablet", UsbDevice.KEYBOARD: "usb-kbd", UsbDevice.MOUSE: "usb-mouse"}


def serial_path(directory: Path, number: int) -> Path:
    """Return the socket of a serial port; 1 is the first one beyond the console's."""
    return directory / f"serial-{number}.sock"


def serials(descriptors: Sequence[int]) -> list[str]:
    """Return the serial ports behind sockets that listen. What a guest writes while nobody looks is dropped."""
    return [
        argument
        for number, descriptor in enumerate(descriptors, 1)
        for argument in (
            *("-chardev", f"socket,id=serial{number},fd={descriptor},server=on,wait=off"),
            *("-serial", f"chardev:serial{number}"),
        )
    ]


def usb(kinds: Sequence[UsbDevice]) -> list[str]:
    """Return a USB 3 controller with these devices, on its ports in this order; nothing without any."""
    if not kinds:
        return []
    arguments = ["-device", f"qemu-xhci,id={USB}"]
    for port, kind in enumerate(kinds, 1):
        arguments += ["-device", f"{DRIVERS[kind]},id=usb-{kind},bus={USB}.0,port={port}"]
    return arguments
