"""Many messages at once leave room for the flows between them."""

from __future__ import annotations

import time

import trio

from ztunnel.process.channel import Channel, Message, pair
from ztunnel.process.link import Link
from ztunnel.relay.engine import Engine


async def test_messages_that_take_long_are_served_over_several_rounds_and_in_order() -> None:
    engine = Engine()
    ours, theirs = pair()
    served: list[tuple[int, int]] = []  # number, round
    whole = trio.Event()
    lost = trio.Event()

    def received(message: Message) -> None:
        time.sleep(0.002)  # what applying a piece of the mesh takes
        served.append((message.values[0], engine.rounds))
        if len(served) == 20:
            whole.set()

    link = Link(engine, Channel(theirs), received, lost.set)
    sender = Channel(ours)
    for number in range(20):
        sender.queue(1, number)
    assert sender.flush()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        with trio.fail_after(30):
            await whole.wait()
            sender.close()
            await lost.wait()
        nursery.cancel_scope.cancel()
    assert [number for number, _ in served] == list(range(20))
    assert len({rounds for _, rounds in served}) >= 5
    assert not link.open
    engine.close()
