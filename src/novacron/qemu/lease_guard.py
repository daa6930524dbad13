"""Starts QEMU for a highly available VM, and kills it when the node's lease ends, or when this process is killed.

Run by itself, with nothing but the standard library: ``python -I -S lease_guard.py LEASE [--own-pids]``. It reads
QEMU's command from standard input, one argument after another, each ended by a zero byte, and writes QEMU's process id
to standard output. The kernel kills QEMU when this process ends, for any reason. With ``--own-pids``, QEMU is the first
process of a PID namespace (pid_namespaces(7)).
"""

import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path

LOOK_S = 0.25
READS, READ_AGAIN_S = 3, 0.01
REMAINING_S_MAX = 15.0
"""A little more than any lease lasts (``novacron.model.lease.LEASE_S``): a file that says more is damaged."""
PR_SET_PDEATHSIG = 1
CLONE_NEWPID = 0x20000000
OWN_PIDS = "--own-pids"


def boot_id() -> str:
    """Return an id that the kernel makes anew at every boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def since_boot_s() -> float:
    """Return the seconds since the host was started, sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def valid(lease: str, now_s: float | None = None) -> bool:
    """Say whether the lease holds now: a file of the boot's id and when it ends (CLOCK_BOOTTIME, seconds)."""
    for _ in range(READS):  # the agent writes it in place: read again what is half written
        try:
            boot, deadline_s, _ = Path(lease).read_text().split()
            remaining_s = float(deadline_s) - (since_boot_s() if now_s is None else now_s)
            return boot == boot_id() and 0 < remaining_s <= REMAINING_S_MAX
        except (OSError, ValueError):
            time.sleep(READ_AGAIN_S)
    return False


def ended(process: int) -> bool:
    """Say whether a process, open as pidfd_open(2) opens it, has ended."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(0))


def become(arguments: list[bytes], guard: int) -> None:
    """Become QEMU, in a child of the guard, which is open as ``guard``. Returns never."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    if ended(guard):  # before it was to end with it; getppid(2) says nothing of processes of other PID namespaces
        os._exit(1)
    try:
        os.execvp(arguments[0], arguments)  # noqa: S606 - the agent's own command
    except OSError as error:
        print(f"can't start {arguments[0].decode()}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127)


def main() -> int:
    lease, *options = sys.argv[1:]
    arguments = sys.stdin.buffer.read().split(b"\0")[:-1]
    if not valid(lease):
        print("this node's lease is over", file=sys.stderr)
        return 1
    libc = ctypes.CDLL(None, use_errno=True)
    if OWN_PIDS in options and libc.unshare(CLONE_NEWPID) != 0:  # for what it starts from now on
        print(f"QEMU gets no PID namespace of its own: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        return 1
    guard = os.pidfd_open(os.getpid())
    child = os.fork()
    if child == 0:
        become(arguments, guard)
    sys.stdout.write(f"{child}\n")
    sys.stdout.flush()
    os.close(1)
    os.closerange(3, 4096)  # meant for QEMU alone
    while True:
        ended_pid, status = os.waitpid(child, os.WNOHANG)
        if ended_pid:
            return os.waitstatus_to_exitcode(status) & 0x7F
        if not valid(lease):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return 1
        time.sleep(LOOK_S)


if __name__ == "__main__":
    sys.exit(main())
