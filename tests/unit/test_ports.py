"""Ports that a lab gives to what it starts: nobody else gets them while it lives."""

from __future__ import annotations

import socket
import subprocess
import sys

from lab import ports

ANOTHER_LAB = """
from lab.ports import free_ports
print(*free_ports({count}), flush=True)
input()
"""


def test_ports_are_in_a_row_and_never_given_twice() -> None:
    first, second = ports.free_ports(3), ports.free_ports(2)
    assert first == list(range(first[0], first[0] + 3)) and second[1] == second[0] + 1
    assert not {*first} & {*second}


def test_what_another_lab_was_given_is_not_given_though_nothing_listens_there() -> None:
    count = ports.BLOCK // 2 + 1
    others: list[subprocess.Popen[str]] = []
    command = [sys.executable, "-c", ANOTHER_LAB.format(count=count)]
    try:
        for _ in range(3):
            others.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        given = [set(map(int, other.stdout.readline().split())) for other in others if other.stdout]
        given.append({port for _ in range(2) for port in ports.free_ports(count)})
        assert [len(each) for each in given] == [count] * 3 + [2 * count]
        assert len(set.union(*given)) == 5 * count
    finally:
        for other in others:
            other.communicate("\n")


def test_ports_on_which_something_listens_are_passed_over() -> None:
    (port,) = ports.free_ports(1)
    with socket.create_server(("127.0.0.1", port + 1)):
        assert port + 1 not in ports.free_ports(2)


def test_ports_are_none_that_the_kernel_picks_or_that_forwards_have() -> None:
    assert ports.FIRST + ports.BLOCK * ports.BLOCKS < 30000
