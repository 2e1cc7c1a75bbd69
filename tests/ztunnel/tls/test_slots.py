import trio
from trio.testing import wait_all_tasks_blocked

from ztunnel.tls.slots import Priority, Slots, Turn


class Queue:
    """Tasks that want the one slot, and in which order they got it."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.slots = Slots(1)
        self.order: list[str] = []
        self.release = trio.Event()
        self.nursery = nursery

    async def want(self, name: str, priority: Priority) -> tuple[Turn, trio.CancelScope]:
        turn = Turn(priority)
        scope = trio.CancelScope()

        async def hold() -> None:
            with scope:
                async with self.slots.held(turn):
                    self.order.append(name)
                    await self.release.wait()

        self.nursery.start_soon(hold)
        await wait_all_tasks_blocked()
        return turn, scope


async def test_most_urgent_first_then_oldest(nursery: trio.Nursery) -> None:
    queue = Queue(nursery)
    await queue.want("first", Priority.BACKGROUND)
    await queue.want("background", Priority.BACKGROUND)
    await queue.want("warmup 1", Priority.WARMUP)
    await queue.want("warmup 2", Priority.WARMUP)
    await queue.want("real", Priority.REAL_TIME)
    assert queue.order == ["first"]
    queue.release.set()
    await wait_all_tasks_blocked()
    assert queue.order == ["first", "real", "warmup 1", "warmup 2", "background"]


async def test_priority_rises_while_waiting(nursery: trio.Nursery) -> None:
    queue = Queue(nursery)
    await queue.want("first", Priority.WARMUP)
    await queue.want("second", Priority.WARMUP)
    turn, _ = await queue.want("third", Priority.BACKGROUND)
    turn.priority = Priority.REAL_TIME
    queue.release.set()
    await wait_all_tasks_blocked()
    assert queue.order == ["first", "third", "second"]


async def test_cancelled_ones_leave_no_gap(nursery: trio.Nursery) -> None:
    queue = Queue(nursery)
    _, holder = await queue.want("holder", Priority.WARMUP)
    _, waiter = await queue.want("waiter", Priority.WARMUP)
    waiter.cancel()
    await wait_all_tasks_blocked()
    holder.cancel()
    await wait_all_tasks_blocked()
    await queue.want("next", Priority.WARMUP)
    assert queue.order == ["holder", "next"]


async def test_granted_and_cancelled_in_the_same_moment(nursery: trio.Nursery) -> None:
    queue = Queue(nursery)
    _, holder = await queue.want("holder", Priority.WARMUP)
    _, waiter = await queue.want("waiter", Priority.WARMUP)
    holder.cancel()
    waiter.cancel()
    await wait_all_tasks_blocked()
    await queue.want("next", Priority.WARMUP)
    assert queue.order[-1] == "next"
