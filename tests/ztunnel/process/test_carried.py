"""What a worker tells of its connections, and the lines that are written when it is gone."""

import json
import time
from typing import Any

import pytest

from ztunnel.mesh.changes import Changes
from ztunnel.mesh.state import MeshState
from ztunnel.process import carried
from ztunnel.process.carried import Carried, Telling
from ztunnel.proxy.registry import Registry
from ztunnel.telemetry.access_log import AccessLog
from ztunnel.telemetry.labels import Ends, LabelTable, Peer
from ztunnel.telemetry.log_filter import LogFilter
from ztunnel.telemetry.record import ConnectionRecord


class Connection:
    """One that only has a record."""

    uid = "uid"

    def __init__(self, ends: Ends, port: int) -> None:
        self.record = ConnectionRecord(
            ends, ("10.0.0.1", port), ("10.0.0.2", 80), time.monotonic() - 3
        )

    def count(self) -> None:
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        raise NotImplementedError

    def end(self, flags: str, reason: str) -> None:
        raise NotImplementedError

    def leave(self, reason: str) -> None:
        raise NotImplementedError

    def rejudge(self, state: MeshState, changes: Changes) -> None:
        raise NotImplementedError


class Room:
    """A worker's connections, and what the control process knows of them."""

    def __init__(self, log_filter: str = "info", as_json: bool = False) -> None:
        self.registry = Registry()
        self.written: list[bytes] = []
        log = AccessLog(self.written.append, LogFilter.parse(log_filter), as_json, time.time)
        self.telling = Telling(self.registry, log)
        self.carried = Carried()
        self.as_json = as_json
        self.ends = LabelTable().ends(False, Peer("web-1", "shop"), Peer("db-1", "data"), None)

    def open(self, *ports: int) -> list[Connection]:
        made = [Connection(self.ends, port) for port in ports]
        for one in made:
            self.registry.add(one)
        return made

    def tell(self) -> bool:
        changes = self.telling.changes()
        if changes is not None:
            self.carried.update(*changes)
        return changes is not None

    def lines(self) -> list[str]:
        written: list[bytes] = []
        self.carried.write_lines(written.append, self.as_json, "as the test wants it")
        return [line.decode() for line in written]


def test_each_that_lives_gets_its_line() -> None:
    room = Room()
    first, *_ = room.open(1001, 1002, 1003)
    assert room.tell()
    assert not room.tell(), "nothing has changed"
    room.registry.remove(first)
    (passing,) = room.open(1004)
    room.registry.remove(passing)
    assert room.tell()
    assert len(room.carried) == 2
    lines = room.lines()
    assert [line.split()[5] for line in sorted(lines)] == [
        "src.addr=10.0.0.1:1002",
        "src.addr=10.0.0.1:1003",
    ]
    for line in lines:
        assert "\terror\taccess\tconnection lost\t" in line
        assert 'dst.workload="db-1"' in line
        assert line.endswith('ms" error="as the test wants it"\n')
    assert len(room.carried) == 0
    assert room.lines() == []


def test_of_too_many_only_the_number_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carried, "MOST", 3)
    room = Room()
    made = room.open(*range(1, 11))
    room.tell()
    assert len(room.carried) == 10
    assert len(room.telling._told) == 3
    known = list(room.telling._told)
    for one in known:
        assert isinstance(one, Connection)
        made.remove(one)
        room.registry.remove(one)
    room.tell()
    assert len(room.carried) == 7
    assert len(room.lines()) == 3, "others have taken their places"


def test_a_new_control_process_is_told_of_all() -> None:
    room = Room()
    room.open(1, 2)
    room.tell()
    room.carried = Carried()
    room.telling.restart()
    assert room.tell()
    assert len(room.lines()) == 2


def test_lines_that_are_not_wanted_are_not_written_but_counted() -> None:
    room = Room("info,access=off")
    room.open(1, 2)
    room.tell()
    assert len(room.carried) == 2
    assert room.lines() == []


def test_as_json() -> None:
    room = Room(as_json=True)
    room.open(7)
    room.tell()
    (line,) = room.lines()
    fields = json.loads(line)
    assert fields["message"] == "connection lost"
    assert fields["src.addr"] == "10.0.0.1:7"
    assert fields["duration"].startswith("3")
