"""``novacron vm console``: the terminal becomes the VM's serial console."""

from __future__ import annotations

import os
import ssl
import sys
import termios
import threading
import tty

from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import ClientConnection, connect

from novacron.client import Client, Unreachable

ESCAPE = b"\x1d"
READ_BYTES = 4096


def attach(client: Client, vm: str) -> None:
    """Connect the terminal until Ctrl-], the end of input, or the end of the VM. Raises Unreachable."""
    id = client.get("vms", vm)["id"]
    url = client.config.url.replace("https://", "wss://") + f"/api/v1/vms/{id}/console"
    context = ssl.create_default_context(cadata=client.config.ca or None)
    headers = {"Authorization": f"Bearer {client.config.token}"}
    try:
        socket = connect(url, ssl=context, additional_headers=headers, compression=None, proxy=None)
    except (OSError, WebSocketException) as error:
        raise Unreachable(f"can't open the console of {vm}: {error}") from error
    terminal = sys.stdin.isatty()
    if terminal:
        print(f"connected to {vm}; press Ctrl-] to leave", file=sys.stderr)
    saved = termios.tcgetattr(0) if terminal else None
    if terminal:
        tty.setraw(0)
    reason = ""
    try:
        threading.Thread(target=_keys, args=(socket, terminal), daemon=True).start()
        while True:
            data = socket.recv()
            os.write(1, data if isinstance(data, bytes) else data.encode())
    except ConnectionClosed as closed:
        reason = closed.rcvd.reason if closed.rcvd else ""
    finally:
        if saved is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, saved)
    if reason and reason != "closed":
        raise Unreachable(reason)


def _keys(socket: ClientConnection, terminal: bool) -> None:
    while data := os.read(0, READ_BYTES):
        if terminal and ESCAPE in data:
            break
        try:
            socket.send(data)
        except ConnectionClosed:
            return
    socket.close(reason="closed")
