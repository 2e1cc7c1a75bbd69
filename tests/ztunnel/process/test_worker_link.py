"""The control process's end of a worker that does not answer."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from ztunnel.process import messages
from ztunnel.process.channel import Channel, pair
from ztunnel.process.worker_link import APPLY_TIMEOUT, STUCK_LIMIT, WorkerLink


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    """What can be killed in place of a worker."""
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        yield started
    finally:
        started.kill()
        started.wait()


async def test_one_that_is_stuck_is_waited_for_once_and_killed_in_the_end(
    autojump_clock: trio.testing.MockClock, process: "subprocess.Popen[bytes]"
) -> None:
    ours, theirs = pair()
    link = WorkerLink(0, process.pid, Channel(ours), lambda worker, message: None)
    with theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            started = trio.current_time()
            await link.wait_applied(1)
            assert trio.current_time() - started == pytest.approx(APPLY_TIMEOUT)
            await link.wait_applied(2)
            assert trio.current_time() - started == pytest.approx(APPLY_TIMEOUT)
            await trio.sleep(STUCK_LIMIT - 1)
            assert process.poll() is None
            await trio.sleep(10)
            nursery.cancel_scope.cancel()
    assert process.wait(10) == -signal.SIGKILL


async def test_one_that_answers_again_lives_on(
    autojump_clock: trio.testing.MockClock, process: "subprocess.Popen[bytes]"
) -> None:
    ours, theirs = pair()
    link = WorkerLink(0, process.pid, Channel(ours), lambda worker, message: None)
    worker = Channel(theirs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        await link.wait_applied(1)
        worker.queue(messages.APPLIED, 1)
        assert worker.flush()
        while link.applied < 1:
            await trio.sleep(0.01)
        await trio.sleep(2 * STUCK_LIMIT)
        assert process.poll() is None
        nursery.cancel_scope.cancel()
    worker.close()
