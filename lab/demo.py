"""The demo: NovaCron's main job, shown on real parts. ``script/demo`` runs it."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lab.guest import CounterClient
from lab.hosts import GUEST_NETWORK, Lab, LabFailed, Wan, missing, remove_namespace
from lab.images import images_dir
from lab.platform import SOCKET_PATH_MAX, Platform, PlatformOptions, clean_up_when_ended, default_cache
from lab.ports import are_free
from novacron.local.postgres import PostgresFailed

PORTS = (7443, 7444)
MEMORY_MIB = 512
VM = "web"
ADDRESS = f"{GUEST_NETWORK}.10"
BOOT_TIMEOUT_S = 90.0
END_TIMEOUT_S = 15.0
ASK_TRIES_MAX = 8
ASK_TIMEOUT_S = 3.0
MARKER = ".novacron-demo"
"""A file that says that the directory is the demo's, to be removed with all that is in it."""
TICKS_FILE = "/run/ticks"

say = Console(highlight=False, soft_wrap=True)


def state_dir() -> Path:
    """Return where the demo keeps its files while it runs."""
    base = Path("/var/lib/novacron") if os.geteuid() == 0 else default_cache()
    if len(str(base / "demo")) > SOCKET_PATH_MAX:
        base = Path(tempfile.gettempdir()) / f"novacron-{os.geteuid()}"
    return base / "demo"


def prefix(directory: Path) -> str:
    """Return what the namespaces of the demo in ``directory`` are called."""
    return f"nova-{directory.name}"


class Demo:
    def __init__(self, directory: Path, lacks: list[str]) -> None:
        self.lacks = lacks
        self.lab = Lab(prefix(directory), namespaces=not lacks)
        self.platform = Platform(
            directory, self.lab, images_dir(), PlatformOptions(ports=PORTS if are_free(PORTS) else None)
        )

    def up(self) -> None:
        directory = self.platform.directory
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o755)
        (directory / MARKER).touch()
        started = time.monotonic()
        self.lab.up(default_cache())
        self.platform.up()
        self._remember()
        say.print(f"The platform is up after {time.monotonic() - started:.1f} s: PostgreSQL, the server, two agents.")

    def _remember(self) -> None:
        """Write down what runs, so that a later ``--stop`` finds it."""
        p = self.platform
        assert p.postgres.process is not None
        services = [s.process.pid for s in (p.server, *p.agents.values()) if s.process is not None]
        pids = [*services, *self.lab.pids, p.postgres.process.pid]
        (p.directory / "pids.json").write_text(json.dumps(pids))

    def command(self, *arguments: str) -> None:
        """Show a command and run it as a user would."""
        say.print(f"\n[bold]$ novacron {' '.join(arguments)}[/bold]")
        sys.stdout.flush()
        environment = {**os.environ, "NOVACRON_CONFIG": str(self.platform.config)}
        done = subprocess.run([sys.executable, "-m", "novacron", *arguments], check=False, env=environment)
        if done.returncode != 0:
            raise LabFailed(f"novacron {arguments[0]} {arguments[1]} ended with {done.returncode}")

    @contextlib.contextmanager
    def console(self) -> Iterator[GuestConsole]:
        """Attach to the VM's console, as ``novacron vm console`` does."""
        environment = {**os.environ, "NOVACRON_CONFIG": str(self.platform.config)}
        process = subprocess.Popen(
            [sys.executable, "-m", "novacron", "vm", "console", VM],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
        try:
            yield GuestConsole(process)
        finally:
            process.terminate()
            process.wait()

    def run(self) -> None:
        self.command("node", "list")
        placed = [] if self.lacks else ["--address", f"{ADDRESS}/24"]
        self.command(
            *("vm", "create", VM, "--image", "tiny", "--memory", str(MEMORY_MIB), "--node", "host-a"), *placed, "--wait"
        )
        say.print(f"\n[bold]$ novacron vm console {VM}[/bold]")
        with self.console() as console:
            console.until("ready", BOOT_TIMEOUT_S, show=True)
        if self.lacks:
            self._move_watched_by_console()
        else:
            self._move_watched_by_client()
        self.command("vm", "show", VM)

    def _move_watched_by_client(self) -> None:
        client = CounterClient(self.lab.hosts[0], ADDRESS)
        time.sleep(2)  # a picture of the connection before the move
        before = client.last
        say.print(f"\nA TCP client on host-a reads the guest's counter, line by line: it is at {before}.")
        bytes_before, since = self.lab.link_bytes(), time.monotonic()
        self.command("vm", "migrate", VM, "--to", "host-b")
        sent = self.lab.link_bytes() - bytes_before
        time.sleep(2)  # and after it
        say.print(
            f"\nThe guest's counter went on from {before} to {client.last} over the same TCP connection, "
            f"{client.missing_numbers()} numbers missing."
        )
        broken, lost = client.broken, client.missing_numbers()
        gap_ms = client.longest_gap_ms(since)
        client.close()
        migration = self._migration()
        self._table(migration, [("downtime, as the guest's TCP client saw it", f"{gap_ms:.0f} ms")], sent)
        if broken or lost:
            raise LabFailed(f"the guest's TCP client lost {lost} lines; its connection: {broken or 'open'}")

    def _move_watched_by_console(self) -> None:
        before = self._ticks()
        say.print(f"\nThe guest's own counter, read on its console, is at {before}.")
        self.command("vm", "migrate", VM, "--to", "host-b")
        after = self._ticks()
        say.print(f"\nThe guest's counter went on from {before} to {after}: it was moved, not started again.")
        self._table(self._migration(), [], None)
        if after < before:
            raise LabFailed(f"the guest's counter fell from {before} to {after}")

    def _ticks(self) -> int:
        with self.console() as console:
            for attempt in range(1, ASK_TRIES_MAX + 1):
                console.send(f"\necho ticks=$(cat {TICKS_FILE}).\n")
                try:
                    line = console.until("ticks=[0-9]+[.]", ASK_TIMEOUT_S, pattern=True)
                    break
                except LabFailed:  # a shell that is only just starting throws away what was typed before
                    if attempt == ASK_TRIES_MAX:
                        raise
        return int(line.partition("ticks=")[2].partition(".")[0])

    def _migration(self) -> dict[str, Any]:
        newest = next(iter(self.platform.client.list("migrations", limit=1, vm=VM)))
        return self.platform.client.get("migrations", newest["id"])

    def _table(self, m: dict[str, Any], more: list[tuple[str, str]], link_bytes: int | None) -> None:
        total_s = (datetime.fromisoformat(m["finished_at"]) - datetime.fromisoformat(m["created_at"])).total_seconds()
        progress = m["progress"]
        rows = [
            ("total time, request to running on host-b", f"{total_s:.1f} s"),
            *more,
            ("downtime, as the platform saw it", f"{progress['downtime_ms'] or 0:.0f} ms"),
            ("memory of the guest", f"{MEMORY_MIB} MiB"),
            ("QEMU's migration stream", f"{progress['raw_bytes'] / 1e6:.1f} MB"),
        ]
        if link_bytes is not None:
            use = link_bytes * 8 / total_s / self.lab.wan.rate_bit_per_s
            rows.append(("bytes on the link, all headers included", f"{link_bytes / 1e6:.1f} MB"))
            rows.append(("ratio, stream to link", f"{progress['raw_bytes'] / link_bytes:.1f} : 1"))
            rows.append(("link use over the total time", f"{use:.0%}"))
        else:
            rows.append(("ratio, stream to sent", f"{progress['raw_bytes'] / max(1, progress['wire_bytes']):.1f} : 1"))
        where = f"over a WAN of {self.lab.wan}" if not self.lacks else "on this host, without a WAN"
        table = Table(title=f"\nLive migration of {VM} from host-a to host-b {where}", title_justify="left")
        table.add_column("what")
        table.add_column("measured", justify="right")
        for row in rows:
            table.add_row(*row)
        say.print(table)

    def down(self) -> None:
        with contextlib.suppress(AssertionError):  # one that hangs was killed, and the rest has still to go
            self.platform.down()
        self.lab.down()
        shutil.rmtree(self.platform.directory, ignore_errors=True)


class GuestConsole:
    """The output of ``novacron vm console``, read as it comes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._text = ""
        self._arrived = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        with contextlib.suppress(OSError, ValueError):  # the process was ended
            while data := os.read(descriptor, 4096):
                with self._arrived:
                    self._text += data.decode(errors="replace")
                    self._arrived.notify_all()

    def send(self, text: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def until(self, text: str, timeout_s: float, *, show: bool = False, pattern: bool = False) -> str:
        """Read until a line has ``wanted`` in it, and return that line. Raises LabFailed."""
        import re

        regex = re.compile(text if pattern else re.escape(text))
        deadline, shown = time.monotonic() + timeout_s, 0
        while True:
            with self._arrived:
                lines = self._text.replace("\r", "").split("\n")
                for line in lines[shown:-1]:
                    shown += 1
                    if show and line.strip():
                        say.print(f"  {line}", markup=False)
                    if regex.search(line):
                        return line
                if time.monotonic() > deadline:
                    raise LabFailed(f"the guest's console did not show {text!r} within {timeout_s:.0f} s")
                self._arrived.wait(0.1)


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _running() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def _is_part(pid: int, directory: Path) -> bool:
    """Say whether a process is one of the platform in ``directory``: a QEMU, PostgreSQL, the server, an agent."""
    line = _command_line(pid)
    if b"guest=vm-" in line:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/cwd").readlink().is_relative_to(directory)
    return f"{directory}/".encode() in line and any(word in line for word in (b"postgres", b"-m\0novacron"))


def _end(pids: set[int], number: signal.Signals) -> None:
    """Send a signal to processes and wait until they are gone, for a while."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
    deadline = time.monotonic() + END_TIMEOUT_S
    while any(_command_line(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)


def stop(directory: Path) -> bool:
    """End a demo that was kept or killed; say whether there was one. Raises LabFailed for a directory of others."""
    if not directory.exists():
        return False
    if not (directory / MARKER).exists() and any(directory.iterdir()):
        raise LabFailed(f"{directory} is not a demo's, and a demo's is removed when it ends: name another one")
    if os.geteuid() == 0:
        for letter in "ab":
            remove_namespace(f"{prefix(directory)}-{letter}")
    path = directory / "pids.json"
    ours = {int(pid) for pid in json.loads(path.read_text())} if path.exists() else set()
    words = (str(directory).encode(), b"lab.relay", b"wan\0", b"novacron")
    _end({pid for pid in ours if any(word in _command_line(pid) for word in words)}, signal.SIGTERM)
    # QEMUs of a demo without namespaces, and what did not end in time.
    _end({pid for pid in _running() if _is_part(pid, directory)}, signal.SIGKILL)
    shutil.rmtree(directory, ignore_errors=True)
    return True


def _web_link(platform: Platform) -> str:
    return str(platform.client.config.url + platform.client.create_login_link()["path"])


def _keep(demo: Demo) -> None:
    root = Path(sys.argv[0]).resolve().parent.parent
    config = demo.platform.config
    say.print(
        f"\nThe platform goes on running. Try, in {root}:\n"
        f"  export NOVACRON_CONFIG={config}\n"
        "  .venv/bin/novacron vm list\n"
        f"  .venv/bin/novacron vm migrate {VM} --to host-a\n"
        f"  .venv/bin/novacron vm console {VM}        (Ctrl-] q leaves it)\n"
        "  .venv/bin/novacron node drain host-b\n"
        "  .venv/bin/novacron events --follow\n"
        f"  {demo.platform.directory}/*.log                 (what the processes say)\n"
        f"The web UI, logged in, once and within five minutes:\n  {_web_link(demo.platform)}\n"
        "and end it all with:\n"
        "  script/demo --stop",
        markup=False,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="script/demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the platform running and print what to try next")
    parser.add_argument("--stop", action="store_true", help="end a platform that --keep left running")
    parser.add_argument("--loopback", action="store_true", help="use no namespaces and no WAN, even where they work")
    parser.add_argument(
        "--directory", type=Path, default=state_dir(), help="where its files are (default: %(default)s)"
    )
    arguments = parser.parse_args()
    directory = arguments.directory
    if len(str(directory)) > SOCKET_PATH_MAX or not directory.is_absolute():
        parser.error(f"--directory must be an absolute path of at most {SOCKET_PATH_MAX} bytes")
    try:
        ended = stop(directory)
    except (LabFailed, NotADirectoryError) as error:
        parser.error(f"--directory: {error}")
    if ended:
        say.print("An earlier demo was ended.")
    elif arguments.stop:
        say.print("No demo is running.")
    if arguments.stop:
        return 0
    lacks = ["--loopback was given: both agents share this host, without a WAN"] if arguments.loopback else missing()
    say.print("[bold]NovaCron demo[/bold]: a virtual machine moves, live, from host-a to host-b.")
    for sentence in lacks:
        say.print(f"Not here: {sentence}.", markup=False)
    if not lacks:
        say.print(f"Both hosts are network namespaces of this machine; between them is a WAN of {Wan()}.")
    clean_up_when_ended()
    started = time.monotonic()
    demo = Demo(directory, lacks)
    kept = False
    try:
        demo.up()
        demo.run()
        say.print(f"\nDone after {time.monotonic() - started:.0f} s.")
        if arguments.keep:
            _keep(demo)
            kept = True
        return 0
    except (LabFailed, PostgresFailed, AssertionError) as error:
        say.print(f"\nerror: {error}", markup=False)
        say.print(f"the processes' logs: {directory}/*.log", markup=False)
        for log in sorted(directory.glob("*.log")):
            say.print(f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-8:]), markup=False)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if not kept:
            demo.down()


if __name__ == "__main__":
    sys.exit(main())
