"""What systemd is told about this process: that it is ready, alive, or about to end (sd_notify(3)).

Nothing happens where no service manager listens. The variable stays in the environment for an agent that starts itself
anew; the units accept messages of the main process alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket

SOCKET, WATCHDOG, WATCHDOG_PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"
NO_WATCHDOG_S = 3600.0
"""How long nothing is done at a time where nobody waits for signs of life."""
READY, STOPPING, ALIVE = "READY=1", "STOPPING=1", "WATCHDOG=1"


def tell(state: str) -> None:
    """Tell the service manager of a state, if there is one. One that does not listen is no error of ours."""
    address = os.environ.get(SOCKET, "")
    if not address.startswith(("/", "@")):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
        to.setblocking(False)  # it may be busy: the next message comes soon
        to.connect("\0" + address[1:] if address.startswith("@") else address)
        to.send(state.encode())


def watchdog_s() -> float | None:
    """Return after how many seconds without a sign of life this process is killed; None: never."""
    text, pid = os.environ.get(WATCHDOG, ""), os.environ.get(WATCHDOG_PID, str(os.getpid()))
    if not text.isdecimal() or int(text) == 0 or pid != str(os.getpid()):
        return None
    return int(text) / 1e6


async def keep_alive() -> None:
    """Give signs of life from the event loop until cancelled: a loop that is blocked gives none."""
    limit_s = watchdog_s()
    while True:
        if limit_s is not None:
            tell(ALIVE)
        await asyncio.sleep(NO_WATCHDOG_S if limit_s is None else limit_s / 3)
