"""``novacron vm console`` and ``vm display``: a terminal, or any VNC viewer, at a VM."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import sys
import termios
import threading
import tty

from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.sync.client import ClientConnection, connect

from novacron.client import ApiError, Client, Config, Unreachable

ESCAPE = b"\x1d"
"""Ctrl-]: the next key is for us."""
LEAVE, SIZE, HELP = (b"q", b".", ESCAPE), b"s", b"?"
READ_BYTES = 4096
KEYS = """\r
Ctrl-] q   leave (also Ctrl-] twice)\r
Ctrl-] s   tell the guest's shell the size of this window, and again whenever it changes\r
Ctrl-] ]   send Ctrl-] to the guest\r
Ctrl-] ?   this\r
"""


def open_socket(client: Client, vm: str, kind: str) -> ClientConnection:
    """Return a WebSocket to a console. Raises ApiError, Unreachable."""
    ticket = client.act("vms", vm, "open-console", {"kind": kind})
    url = client.config.url.replace("https://", "wss://") + ticket["path"]
    context = ssl.create_default_context(cadata=client.config.ca or None)
    try:
        return connect(url, ssl=context, compression=None, proxy=None, max_size=None)
    except (OSError, WebSocketException) as error:
        raise Unreachable(f"can't open the console of {vm}: {error}") from error


def attach(client: Client, vm: str) -> None:
    """Connect the terminal until it is left, its input ends, or the VM does. Raises ApiError, Unreachable."""
    socket_ = open_socket(client, vm, "serial")
    terminal = sys.stdin.isatty()
    if terminal:
        print(f"connected to {vm}; press Ctrl-] q to leave, Ctrl-] ? for more", file=sys.stderr)
    saved = termios.tcgetattr(0) if terminal else None
    if terminal:
        tty.setraw(0)
    reason = ""
    try:
        _Keys(socket_, terminal).start()
        while True:
            data = socket_.recv()
            os.write(1, data if isinstance(data, bytes) else data.encode())
    except ConnectionClosed as closed:
        reason = closed.rcvd.reason if closed.rcvd else ""
    finally:
        if saved is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, saved)
    if reason and reason != "closed":
        raise Unreachable(reason)


class _Keys:
    """What is typed goes to the guest, but for what follows the escape key."""

    def __init__(self, socket_: ClientConnection, terminal: bool) -> None:
        self._socket = socket_
        self._terminal = terminal
        self._resized = threading.Event()
        self._follows = False

    def start(self) -> None:
        """Begin; to be called in the main thread, which gets the signals."""
        if self._terminal:
            signal.signal(signal.SIGWINCH, lambda *_: self._resized.set())
            threading.Thread(target=self._tell_sizes, daemon=True).start()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        escaped = False
        try:
            while data := os.read(0, READ_BYTES):
                if not self._terminal:
                    self._socket.send(data)
                    continue
                for number in data:
                    key = bytes([number])
                    if escaped and key in LEAVE:
                        self._socket.close(reason="closed")
                        return
                    if escaped:
                        self._obey(key)
                    elif key != ESCAPE:
                        self._socket.send(key)
                    escaped = key == ESCAPE and not escaped
            self._socket.close(reason="closed")
        except ConnectionClosed:
            pass

    def _obey(self, key: bytes) -> None:
        if key == SIZE:
            self._follows = True
            self._resized.set()
        elif key == HELP:
            os.write(2, KEYS.encode())
        elif key == b"]":
            self._socket.send(ESCAPE)

    def _tell_sizes(self) -> None:
        """Tell the guest's shell the size of this terminal: a serial line has no other way."""
        while self._resized.wait():
            self._resized.clear()
            size = os.get_terminal_size(0)
            if self._follows:
                try:
                    self._socket.send(f"stty rows {size.lines} cols {size.columns}\r".encode())
                except ConnectionClosed:
                    return


def serve_display(client: Client, vm: str, port: int) -> None:
    """Let VNC viewers of this machine see a VM's display, until interrupted. Raises ApiError, OSError."""
    client.get("vms", vm)
    with socket.create_server(("127.0.0.1", port)) as server:
        print(f"connect a VNC viewer to 127.0.0.1:{server.getsockname()[1]}; Ctrl-C ends this", flush=True)
        while True:
            viewer, _ = server.accept()
            threading.Thread(target=_carry, args=(client.config, vm, viewer), daemon=True).start()


def _carry(config: Config, vm: str, viewer: socket.socket) -> None:
    with viewer:
        try:
            with open_socket(Client(config), vm, "display") as socket_:
                threading.Thread(target=_outwards, args=(viewer, socket_), daemon=True).start()
                while True:
                    data = socket_.recv()
                    viewer.sendall(data if isinstance(data, bytes) else data.encode())
        except (ApiError, Unreachable, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
        except ConnectionClosed as closed:
            if closed.rcvd is not None and closed.rcvd.reason not in ("", "closed"):
                print(f"error: {closed.rcvd.reason}", file=sys.stderr)


def _outwards(viewer: socket.socket, socket_: ClientConnection) -> None:
    try:
        while data := viewer.recv(READ_BYTES):
            socket_.send(data)
        socket_.close()
    except (ConnectionClosed, OSError):
        pass
