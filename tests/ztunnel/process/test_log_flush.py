"""Log lines are handed over at once after silence, and together under load."""

import trio

from ztunnel.process.log_flush import LogFlush
from ztunnel.relay.engine import Engine


async def test_lines_that_come_fast_go_together() -> None:
    engine = Engine()
    shipped: list[float] = []
    again = trio.Event()

    def ship() -> None:
        shipped.append(trio.current_time())
        if len(shipped) > 1:
            again.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        nursery.start_soon(engine.watch_deadlines)
        flush = LogFlush(engine, ship, together=60)
        flush.flush()
        assert len(shipped) == 1
        for _ in range(100):
            flush.flush()
        assert len(shipped) == 1
        with trio.fail_after(30):
            await again.wait()
        assert len(shipped) == 2
        nursery.cancel_scope.cancel()
    engine.close()
