"""``novacron vm console`` and ``vm display``: a terminal, or any VNC viewer, at a VM."""

from __future__ import annotations

import os
import signal
import socket
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable
from typing import TypeVar

from novacron.client import ApiError, Client, Config, Unreachable
from novacron.client.console import GONE, Console, ConsoleEnded
from novacron.terminal import say

T = TypeVar("T")

ESCAPE = b"\x1d"
"""Ctrl-]: the next key is for us."""
LEAVE, SIZE, HELP = (b"q", b".", ESCAPE), b"s", b"?"
READ_BYTES = 4096
REOPEN_PAUSES_S = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Before each attempt to open a console again whose server has gone."""
KEYS = """\r
Ctrl-] q   leave (also Ctrl-] twice)\r
Ctrl-] s   tell the guest's shell the size of this window, and again whenever it changes\r
Ctrl-] ]   send Ctrl-] to the guest\r
Ctrl-] ?   this\r
"""


def attach(client: Client, vm: str, serial: int = 0) -> None:
    """Connect the terminal until it is left, its input ends, or the VM does. Raises ApiError, Unreachable."""
    console = Line(client.open_console(vm, serial=serial), lambda: Client().open_console(vm, serial=serial))
    terminal = sys.stdin.isatty()
    if terminal:
        say(f"connected to {vm}; press Ctrl-] q to leave, Ctrl-] ? for more", err=True)
    saved = termios.tcgetattr(0) if terminal else None
    if terminal:
        tty.setraw(0)
    reason = ""
    try:
        _Keys(console, terminal).start()
        while True:
            os.write(1, console.recv())
    except ConsoleEnded as closed:
        reason = str(closed)
    finally:
        if saved is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, saved)
    if reason:
        raise Unreachable(reason)


class Line:
    """A console that is opened again when its server goes away, as when that restarts or takes another certificate into
    use. What the guest prints meanwhile is in the console's log only. Any thread may use it."""

    def __init__(self, console: Console, reopen: Callable[[], Console]) -> None:
        """``reopen`` opens it again, with the settings as they are then."""
        self._console = console
        self._reopen = reopen
        self._lock = threading.Lock()

    def send(self, data: bytes) -> None:
        """Send bytes to the guest. Raises ConsoleEnded."""
        self._do(lambda console: console.send(data))

    def recv(self) -> bytes:
        """Return the next bytes of the guest's. Raises ConsoleEnded."""
        return self._do(lambda console: console.recv())

    def close(self) -> None:
        self._console.close()

    def _do(self, work: Callable[[Console], T]) -> T:
        while True:
            console = self._console
            try:
                return work(console)
            except ConsoleEnded as ended:
                if str(ended) != GONE:
                    raise
                self._open_again(console, ended)

    def _open_again(self, gone: Console, ended: ConsoleEnded) -> None:
        """Open it again, unless another thread has. Raises ConsoleEnded if that can't be done."""
        with self._lock:
            if self._console is not gone:
                return
            for pause_s in REOPEN_PAUSES_S:
                time.sleep(pause_s)
                try:
                    self._console = self._reopen()
                except (ApiError, Unreachable):  # it may be another moment until the server is back
                    continue
                return
            raise ended


class _Keys:
    """What is typed goes to the guest, but for what follows the escape key."""

    def __init__(self, console: Line, terminal: bool) -> None:
        self._console = console
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
                    self._console.send(data)
                    continue
                for number in data:
                    key = bytes([number])
                    if escaped and key in LEAVE:
                        self._console.close()
                        return
                    if escaped:
                        self._obey(key)
                    elif key != ESCAPE:
                        self._console.send(key)
                    escaped = key == ESCAPE and not escaped
            self._console.close()
        except ConsoleEnded:
            pass

    def _obey(self, key: bytes) -> None:
        if key == SIZE:
            self._follows = True
            self._resized.set()
        elif key == HELP:
            os.write(2, KEYS.encode())
        elif key == b"]":
            self._console.send(ESCAPE)

    def _tell_sizes(self) -> None:
        """Tell the guest's shell the size of this terminal: a serial line has no other way."""
        while self._resized.wait():
            self._resized.clear()
            size = os.get_terminal_size(0)
            if self._follows:
                try:
                    self._console.send(f"stty rows {size.lines} cols {size.columns}\r".encode())
                except ConsoleEnded:
                    return


def serve_display(client: Client, vm: str, port: int) -> None:
    """Let VNC viewers of this machine see a VM's display, until interrupted. Raises ApiError, OSError."""
    client.get("vms", vm)
    with socket.create_server(("127.0.0.1", port)) as server:
        say(f"connect a VNC viewer to 127.0.0.1:{server.getsockname()[1]}; press Ctrl-C to stop", flush=True)
        while True:
            viewer, _ = server.accept()
            threading.Thread(target=_carry, args=(client.config, vm, viewer), daemon=True).start()


def _carry(config: Config, vm: str, viewer: socket.socket) -> None:
    with viewer:
        try:
            with Client(config).open_console(vm, "display") as console:
                threading.Thread(target=_outwards, args=(viewer, console), daemon=True).start()
                while True:
                    viewer.sendall(console.recv())
        except (ApiError, Unreachable, OSError) as error:
            say(f"error: {error}", err=True)
        except ConsoleEnded as closed:
            if str(closed):
                say(f"error: {closed}", err=True)


def _outwards(viewer: socket.socket, console: Console) -> None:
    try:
        while data := viewer.recv(READ_BYTES):
            console.send(data)
        console.close()
    except (ConsoleEnded, OSError):
        pass
