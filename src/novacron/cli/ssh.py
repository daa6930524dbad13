"""``novacron vm ssh`` and ``vm forward-port``: TCP connections to guests through their nodes, without a route."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import sys
import threading
from typing import Annotated

import typer

from novacron.cli import output
from novacron.cli.vms import VmRef
from novacron.client import ApiError, Client, Config, Unreachable
from novacron.client.console import Console, ConsoleEnded
from novacron.terminal import say

READ_BYTES = 64 * 1024
CONNECTIONS_MAX = 16
"""At once, of one local port."""

Arguments = Annotated[
    list[str] | None, typer.Argument(metavar="[COMMAND]...", help="command to run in the guest", show_default=False)
]


def ssh(
    vm: VmRef,
    arguments: Arguments = None,
    user: Annotated[str | None, typer.Option("--user", "-l", help="user in the guest", show_default=False)] = None,
    identity: Annotated[str | None, typer.Option("--identity", "-i", help="private key", show_default=False)] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="port of the guest's SSH server")] = 22,
    option: Annotated[
        list[str] | None, typer.Option("-o", help="option of ssh(1); can be repeated", show_default=False)
    ] = None,
) -> None:
    """Log in to the guest by SSH, or run a command there, through its node: no route to the guest is needed.

    Options come before the VM's name. Each VM has a separate host key in known_hosts, under the VM's id; that of the
    first connection is trusted.
    """
    program = shutil.which("ssh")
    if program is None:
        raise output.fail("ssh is not installed; on Debian: apt-get install openssh-client", output.EXIT_UNREACHABLE)
    with output.errors():
        id = Client().get("vms", vm)["id"]
    command = ssh_command(id, port, user, identity, option or [], arguments or [])
    os.execv(program, command)  # noqa: S606 - no shell


def ssh_command(
    id: str, port: int, user: str | None, identity: str | None, options: list[str], arguments: list[str]
) -> list[str]:
    """Return what is to be run. ssh(1) runs the proxy in a shell."""
    proxy = shlex.join([sys.executable, "-m", "novacron", "vm", "forward-port", id, str(port)]).replace("%", "%%")
    given = [f"HostKeyAlias=novacron-{id}", "StrictHostKeyChecking=accept-new", f"ProxyCommand={proxy}"]
    command = ["ssh"]
    for text in (*options, *given):  # the first one counts
        command += ["-o", text]
    command += ["-l", user] if user else []
    command += ["-i", identity] if identity else []
    return [*command, "--", id, *arguments]


def forward_port(
    vm: VmRef,
    port: Annotated[int, typer.Argument(min=1, max=65535, help="TCP port of the guest", show_default=False)],
    listen: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="local port to listen on; 0: a free one", show_default=False),
    ] = None,
) -> None:
    """Connect standard input and output, or a local port, to a TCP port of the guest, through its node.

    For ssh, scp and others: ProxyCommand="novacron vm forward-port web 22"
    """
    with output.errors():
        if listen is None:
            _pipe(Client().open_port(vm, port))
        else:
            _serve(Client(), vm, port, listen)


def _pipe(connection: Console) -> None:
    """Carry bytes until the guest ends the connection. Raises Unreachable."""

    def send() -> None:
        with contextlib.suppress(ConsoleEnded, OSError):
            while data := os.read(0, READ_BYTES):
                connection.send(data)
            connection.send(b"")

    threading.Thread(target=send, daemon=True).start()
    try:
        while True:
            sys.stdout.buffer.write(connection.recv())
            sys.stdout.buffer.flush()
    except BrokenPipeError:  # nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        connection.close()
    except ConsoleEnded as ended:
        if str(ended):
            raise Unreachable(str(ended)) from ended


def _serve(client: Client, vm: str, port: int, listen: int) -> None:
    """Take connections of this machine until interrupted. Raises ApiError, OSError."""
    client.get("vms", vm)
    free = threading.BoundedSemaphore(CONNECTIONS_MAX)
    with socket.create_server(("127.0.0.1", listen)) as server:
        say(f"127.0.0.1:{server.getsockname()[1]} leads to port {port} of {vm}; Ctrl-C ends this", flush=True)
        while True:
            free.acquire()
            local, _ = server.accept()
            threading.Thread(target=_carry, args=(client.config, (vm, port), local, free), daemon=True).start()


def _carry(config: Config, target: tuple[str, int], local: socket.socket, free: threading.BoundedSemaphore) -> None:
    try:
        with local, Client(config).open_port(*target) as connection:
            threading.Thread(target=_outwards, args=(local, connection), daemon=True).start()
            while True:
                local.sendall(connection.recv())
    except (ApiError, Unreachable, OSError) as error:
        say(f"error: {error}", err=True)
    except ConsoleEnded as ended:
        if str(ended):
            say(f"error: {ended}", err=True)
    finally:
        free.release()


def _outwards(local: socket.socket, connection: Console) -> None:
    with contextlib.suppress(ConsoleEnded, OSError):
        while data := local.recv(READ_BYTES):
            connection.send(data)
        connection.send(b"")
