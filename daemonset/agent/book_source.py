"""The pods of a book as a source for the agent."""

from collections.abc import AsyncGenerator, Sequence

import trio

from daemonset.agent.pod_book import PodBook
from daemonset.agent.pods import Pod


class BookSource:
    """Whoever writes into `book` calls `changed`; the first list waits for `complete`."""

    def __init__(self, book: PodBook) -> None:
        self.book = book
        self._changed = trio.Event()
        self._complete = trio.Event()

    def changed(self) -> None:
        """The book has changed."""
        self._changed.set()
        self._changed = trio.Event()

    def complete(self) -> None:
        """From now on what is not in the book is not there."""
        self._complete.set()

    def next_change(self) -> trio.Event:
        """Set when the book changes after this call."""
        return self._changed

    async def wait_complete(self) -> None:
        """Return when all pods are in the book."""
        await self._complete.wait()

    async def pods(self) -> AsyncGenerator[Sequence[Pod], None]:
        """See `PodSource`."""
        await self._complete.wait()
        while True:
            changed = self._changed
            yield self.book.pods()
            await changed.wait()
