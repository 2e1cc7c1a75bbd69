"""The load generator finds what it is there to find."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from perf.build import Tools, build
from tests.support.ports import free_ports
from tests.support.requirements import without_compiler

PORTS = "ekor"


@pytest.fixture(scope="module")
def tools() -> Tools:
    missing = without_compiler()
    if missing:
        pytest.skip(missing)
    return build()


@pytest.fixture(scope="module")
def ports(tools: Tools) -> Iterator[dict[str, int]]:
    """tcpserve's ports by their option."""
    found = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    command = [str(tools.tcpserve), "-V"]
    for option, port in found.items():
        command += [f"-{option}", f"127.0.0.1:{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield found
        finally:
            process.kill()


def load(tools: Tools, port: int, *arguments: str) -> tuple[int, dict[str, Any]]:
    command = [str(tools.tcpload), "-d", "0.2", "-w", "0.1", "-T", "2", *arguments]
    done = subprocess.run(
        [*command, f"127.0.0.1:{port}"], capture_output=True, text=True, timeout=120, check=False
    )
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize("mode", ["pingpong", "connect", "halfclose"])
@pytest.mark.parametrize("size", ["1", "9", "200000"])
def test_messages_come_back(tools: Tools, ports: dict[str, int], mode: str, size: str) -> None:
    code, report = load(tools, ports["e"], "-m", mode, "-c", "3", "-s", size)
    assert (code, report["failures"]) == (0, {"total": 0})
    assert report["operations"] > 0
    latency = report["latency_us"]
    assert latency["min"] <= latency["p50"] <= latency["p99"] <= latency["max"]


@pytest.mark.parametrize(("mode", "option"), [("up", "k"), ("down", "o"), ("both", "e")])
def test_streams_arrive_whole(tools: Tools, ports: dict[str, int], mode: str, option: str) -> None:
    code, report = load(tools, ports[option], "-V", "-m", mode, "-c", "2")
    assert (code, report["failures"]) == (0, {"total": 0})
    assert report["bytes"] > 1_000_000


def test_idle_connections_are_opened_in_halves_and_still_work(
    tools: Tools, ports: dict[str, int]
) -> None:
    code, report = load(tools, ports["e"], "-m", "idle", "-c", "40", "-p", str(os.getpid()))
    assert code == 0
    assert report["alive"] == 40
    [process] = report["processes"]
    assert process["pss_to_kib"] > 0


def test_cpu_time_of_processes_is_reported(tools: Tools, ports: dict[str, int]) -> None:
    """Of a process whose threads all live on: what those had that have ended is known in ticks."""
    with subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"],
                          stdout=subprocess.PIPE) as busy:  # fmt: skip
        try:
            assert busy.stdout is not None
            busy.stdout.readline()
            _, report = load(tools, ports["e"], "-c", "1", "-d", "1", "-p", str(busy.pid))
        finally:
            busy.kill()
    assert report["processes_cpu_s"] > 0.01


def test_resets_and_refusals_are_failures(tools: Tools, ports: dict[str, int]) -> None:
    code, report = load(tools, ports["r"])
    assert code == 1
    assert report["failures"]["reset"] > 0
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        code, report = load(tools, closed.getsockname()[1])
    assert code == 1
    assert report["failures"]["connect"] > 0


def spoiled(change: Callable[[bytes], bytes]) -> Iterator[int]:
    """An echo that answers `change` of what it gets, on one connection after the other."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        while data := connection.recv(65536):
                            connection.sendall(change(data))
                    except OSError:
                        continue

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture
def wrong() -> Iterator[int]:
    yield from spoiled(lambda data: bytes(byte ^ 1 for byte in data))


@pytest.fixture
def doubled() -> Iterator[int]:
    yield from spoiled(lambda data: data * 2)


def test_wrong_bytes_are_found(tools: Tools, wrong: int) -> None:
    assert load(tools, wrong, "-s", "10")[1]["failures"]["mismatch"] > 0
    assert load(tools, wrong, "-m", "both", "-V")[1]["failures"]["mismatch"] > 0


def test_surplus_bytes_are_found(tools: Tools, doubled: int) -> None:
    assert load(tools, doubled, "-s", "10")[1]["failures"]["mismatch"] > 0


@pytest.mark.parametrize("bad", [["-m", "none"], ["-c", "0"], ["-d", "x"], ["-s", "2000000"], []])
def test_bad_use_is_refused(tools: Tools, bad: list[str]) -> None:
    target = ["127.0.0.1:1"] if bad else []
    done = subprocess.run(
        [str(tools.tcpload), *bad, *target], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr
