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

    async def wait_changed(self) -> None:
        """Return when the book has changed."""
        await self._changed.wait()

    async def pods(self) -> AsyncGenerator[Sequence[Pod], None]:
        """See `PodSource`."""
        await self._complete.wait()
        while True:
            changed = self._changed
            yield self.book.pods()
            await changed.wait()
