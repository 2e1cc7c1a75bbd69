import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemonset.local.namespaces import Keeper, Namespace
from daemonset.local.processes import (
    ProcessError,
    Processes,
    Program,
    base_environment,
    python,
    resolve,
)

pytestmark = pytest.mark.root


class Room:
    def __init__(self, keeper: Keeper, folder: Path) -> None:
        self.namespace: Namespace = keeper.make("ambient-x", hostname="x")
        self.reports: list[str] = []
        self.processes = Processes(keeper, self.reports.append)
        self.folder = folder

    def program(self, name: str, script: str, **more: object) -> Program:
        values: dict[str, object] = {
            "name": name,
            "namespace": self.namespace,
            "command": ("sh", "-c", script),
            "environment": base_environment(),
            "log": self.folder / f"{name}.log",
            **more,
        }
        return Program(**values)  # type: ignore[arg-type]

    def watch_until_reported(self, count: int) -> None:
        deadline = time.monotonic() + 30
        while len(self.reports) < count:
            assert time.monotonic() < deadline, self.reports
            self.processes.watch()
            time.sleep(0.01)

    def wait_for_words(self, name: str) -> None:
        """Until a program has written something."""
        deadline = time.monotonic() + 30
        while not (self.folder / f"{name}.log").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    with Keeper() as keeper:
        yield Room(keeper, tmp_path)


def test_what_ends_is_reported_and_started_again(room: Room) -> None:
    running = room.processes.start(room.program("short", "echo again; exit 3"))
    room.watch_until_reported(2)
    assert "short ended with status 3; it is started again in 0.5 s" in room.reports[0]
    assert "in 1 s" in room.reports[1]
    assert running.restarts == 1
    assert (room.folder / "short.log").read_text() == "again\nagain\n"


@pytest.mark.parametrize(("policy", "script"), [("Never", "exit 1"), ("OnFailure", "exit 0")])
def test_a_restart_policy_is_kept(room: Room, policy: str, script: str) -> None:
    running = room.processes.start(room.program("job", script, restart=policy))
    room.watch_until_reported(1)
    room.processes.watch()
    assert running.restarts == 0
    assert running.state.startswith("ended with status")


def test_a_process_that_is_not_ready_fails_with_its_log(room: Room) -> None:
    room.processes.start(room.program("stuck", "echo I cannot; sleep 1000", is_ready=lambda: False))
    room.wait_for_words("stuck")
    with pytest.raises(
        ProcessError, match=r"stuck was not ready within 0.3 s \(running.*"
    ) as caught:
        room.processes.await_ready(["stuck"], 0.3)
    assert "I cannot" in str(caught.value)


def test_a_process_that_ends_again_and_again_is_not_waited_for(room: Room) -> None:
    room.processes.start(room.program("broken", "echo no; exit 1", is_ready=lambda: False))
    with pytest.raises(
        ProcessError, match=r"broken ended again and again before it was ready \(ended with status"
    ) as caught:
        room.processes.await_ready(["broken"], 60.0, 1)
    assert str(caught.value).count("    no") == 2


def test_processes_are_asked_to_end_and_then_made_to(room: Room) -> None:
    gentle = room.processes.start(
        room.program("gentle", "trap 'exit 0' TERM; sleep 1000 & echo gentle; wait")
    )
    deaf = room.processes.start(
        room.program("deaf", "trap '' TERM; echo deaf; sleep 1000", grace=0.3)
    )
    for name in ("gentle", "deaf"):  # they have said what signals are to do by then
        room.wait_for_words(name)
    room.processes.stop(["gentle", "deaf"])
    assert gentle.process is not None
    assert gentle.process.returncode == 0
    assert deaf.process is not None
    assert deaf.process.returncode == -9
    assert room.processes.running == {}


def test_python_means_the_interpreter_that_runs_us() -> None:
    assert resolve(["python", "-V"]) == python("-V")
    assert resolve(["curl", "-V"]) == ("curl", "-V")


def test_nothing_of_the_users_environment_gets_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example")
    monkeypatch.setenv("LD_PRELOAD", "x.so")
    environment = base_environment()
    assert environment.keys() == {"PATH", "PYTHONPATH", "PYTHONUNBUFFERED", "LANG", "HOME"}
    code = "import daemonset.local.app"
    subprocess.run([sys.executable, "-c", code], env=environment, cwd="/", check=True)
