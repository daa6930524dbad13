"""Frames that arrive for a guest while a migration has paused it: kept, and sent after it once it runs elsewhere.

A frame that reaches the source of a migration after the guest stopped would be lost with its tap; its sender then
waits for its retransmission time-out, several times the downtime. Needs CAP_NET_RAW.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections import deque

from novacron.net.tap import NetworkFailed, tap_address

ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_VNET_HDR = 15
"""Frames carry a virtio header (linux/virtio_net.h), so that unfinished checksums are finished when they are sent."""
VNET_HEADER_BYTES = 10
SOURCE_AT = VNET_HEADER_BYTES + 6
PACKET_OUTGOING = 4
KEPT_BYTES_MAX = 1024 * 1024
FRAME_BYTES_MAX = 65536 + 64
FRAMES_MAX = 4096
BATCHES = 2
"""How many of the batches read before a guest's stop was noticed are kept."""


def _open(device: str, protocol: int) -> socket.socket:
    """Return a packet socket on a device. Raises NetworkFailed."""
    try:
        packet_socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    except OSError as error:
        raise NetworkFailed(f"can't open a packet socket: {error}") from error
    try:
        packet_socket.setblocking(False)
        packet_socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        packet_socket.bind((device, protocol))
    except OSError as error:
        packet_socket.close()
        raise NetworkFailed(f"can't open a packet socket on {device}: {error}") from error
    return packet_socket


class InFlightFrames:
    """Keeps the frames sent to a tap from now on, in the kernel's buffer, up to ``KEPT_BYTES_MAX``.

    The agent notices a guest's stop only a moment later. So it starts this before the stop, and calls ``forget_old``
    until it has noticed it: the frames that arrived in between are then kept too.
    """

    def __init__(self, tap: str) -> None:
        self._socket = _open(tap, ETH_P_ALL)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KEPT_BYTES_MAX)
        self._recent: deque[list[tuple[int, bytes]]] = deque(maxlen=BATCHES)

    def forget_old(self) -> None:
        """Forget what came before the last few calls of this. Raises NetworkFailed."""
        self._recent.append(self._read())

    def _unicast(self, mac: bytes) -> list[bytes]:
        """Return the kept frames for ``mac`` alone; all others have reached the target already."""
        frames = [frame for batch in (*self._recent, self._read()) for frame in batch]
        return [data for kind, data in frames if kind == PACKET_OUTGOING and data[VNET_HEADER_BYTES:SOURCE_AT] == mac]

    def _read(self) -> list[tuple[int, bytes]]:
        """Return the frames that have arrived, each with its packet type."""
        frames = []
        for _ in range(FRAMES_MAX):
            try:
                data, (_, _, kind, *_) = self._socket.recvfrom(FRAME_BYTES_MAX)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.ENETDOWN:  # reported once, when the tap goes; the frames follow it
                    continue
                raise NetworkFailed(f"can't read kept frames: {error}") from error
            frames.append((kind, data))
        return frames

    def send_after(self, bridge: str, mac: str) -> int:
        """Send the frames kept for ``mac`` over the bridge, which by now has another path to it; return how many.

        Their source address is the tap's: with their own, bridges on the way would learn that their senders are here.
        """
        guest, own = (bytes.fromhex(address.replace(":", "")) for address in (mac, tap_address(mac)))
        frames = [frame[:SOURCE_AT] + own + frame[SOURCE_AT + 6 :] for frame in self._unicast(guest)]
        if frames:
            with contextlib.closing(_open(bridge, 0)) as out:
                for frame in frames:
                    with contextlib.suppress(BlockingIOError):  # a full queue loses it, as any network may
                        out.send(frame)
        return len(frames)

    def close(self) -> None:
        self._socket.close()
