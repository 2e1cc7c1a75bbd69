from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from ztunnel.xds.local_file import POLL_INTERVAL, LocalFile

# pytest-trio uses a clock only where the test itself asks for it.
Clock = trio.testing.MockClock


class Watched:
    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self.clock = clock
        self.applied: list[str] = []
        self.parsed: list[str] = []
        self.file = LocalFile(path, self.parse, self.apply)

    def parse(self, text: str, source: str) -> str:
        self.parsed.append(text)
        if text.startswith("bad"):
            raise ValueError(f"{source}: line 1: {text}")
        return text

    async def apply(self, state: str) -> None:
        self.applied.append(state)

    async def ticks(self, count: int) -> None:
        """So many looks at the file."""
        for _ in range(count):
            self.clock.jump(POLL_INTERVAL)
            await trio.testing.wait_all_tasks_blocked()

    async def until(self, count: int) -> None:
        """Until so many texts have been read, which takes a thread and therefore real time."""
        await self.ticks(2)
        for _ in range(5000):
            if len(self.parsed) >= count:
                return
            await trio.testing.wait_all_tasks_blocked(0.002)
        raise AssertionError(f"never got {count}: {self.parsed}")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.file.load()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.file.watch)
            await trio.testing.wait_all_tasks_blocked()
            yield
            nursery.cancel_scope.cancel()


@pytest.fixture
def watched(tmp_path: Path, mock_clock: Clock) -> Watched:
    path = tmp_path / "state.yaml"
    path.write_text("one")
    return Watched(path, mock_clock)


async def test_changes_are_applied_also_through_a_link(
    watched: Watched, mock_clock: Clock, tmp_path: Path
) -> None:
    async with watched.running():
        watched.path.write_text("two!")
        await watched.until(2)
        # As the kubelet updates a ConfigMap: a link is put over the name.
        (tmp_path / "new").write_text("three")
        os.symlink("new", tmp_path / "link")
        os.replace(tmp_path / "link", watched.path)
        await watched.until(3)
    assert watched.applied == ["one", "two!", "three"]


async def test_a_bad_or_missing_file_changes_nothing_and_is_told_once(
    watched: Watched, mock_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with watched.running():
        watched.path.write_text("bad one")
        await watched.until(2)
        watched.path.unlink()
        await watched.ticks(5)
        watched.path.write_text("two!")
        await watched.until(3)
    assert watched.applied == ["one", "two!"]
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 2
    assert "state.yaml: line 1: bad one" in errors[0]
    assert "No such file" in errors[1]


async def test_a_file_that_is_being_written_is_left_alone(
    watched: Watched, mock_clock: Clock
) -> None:
    async with watched.running():
        for length in range(1, 30):
            watched.path.write_text("x" * length)
            await watched.ticks(1)
        watched.path.write_text("whole")
        await watched.until(2)
    assert watched.applied == ["one", "whole"]


async def test_the_first_reading_must_succeed(watched: Watched, mock_clock: Clock) -> None:
    watched.path.write_text("bad")
    with pytest.raises(ValueError, match="line 1: bad"):
        await watched.file.load()
    watched.path.write_bytes(b"\xff")
    with pytest.raises(ValueError):
        await watched.file.load()
    watched.path.unlink()
    with pytest.raises(FileNotFoundError):
        await watched.file.load()


async def test_what_changes_between_loading_and_watching_is_seen(
    watched: Watched, mock_clock: Clock
) -> None:
    await watched.file.load()
    watched.path.write_text("two!")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watched.file.watch)
        await trio.testing.wait_all_tasks_blocked()
        await watched.until(2)
        nursery.cancel_scope.cancel()
    assert watched.applied == ["one", "two!"]
