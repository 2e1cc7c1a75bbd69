"""What a worker asks others for: resources of the mesh, and addresses of names."""

import logging
import socket
from collections.abc import Callable, Iterable, Sequence

import trio

from ztunnel.mesh.state import MeshState

log = logging.getLogger("ztunnel.worker")


class Questions:
    """Look-ups on demand, one under way for each key.

    Args:
        is_there: whether there is a control process to be asked.
        ask: asks it for a key; its answer comes by `looked_up`.
        timeout: seconds that an answer is waited for.
    """

    def __init__(
        self,
        state: MeshState,
        is_there: Callable[[], bool],
        ask: Callable[[str], None],
        timeout: float,
    ) -> None:
        self._state = state
        self._is_there = is_there
        self._ask = ask
        self._timeout = timeout
        self._waiting: dict[str, list[trio.Event]] = {}

    @property
    def open(self) -> Iterable[str]:
        """Keys that are waited for."""
        return self._waiting

    def give_up(self) -> None:
        """Who was asked is gone."""
        for events in self._waiting.values():
            for event in events:
                event.set()

    async def look_up(self, key: str) -> bool:
        """Asks the control plane for `key`; the state then holds what there is."""
        if not self._is_there():
            log.warning("%s cannot be looked up: the control process is not there", key)
            return False
        event = trio.Event()
        waiting = self._waiting.setdefault(key, [])
        waiting.append(event)
        if len(waiting) == 1:
            self._ask(key)
        try:
            with trio.move_on_after(self._timeout):
                await event.wait()
        finally:
            waiting.remove(event)
            if not waiting:
                self._waiting.pop(key, None)
        return not self._state.needs_lookup(key)

    def looked_up(self, key: str, answered: bool) -> None:
        """The control plane has answered, or not: whoever waits goes on."""
        if answered:
            self._state.lookup_finished(key)
        for event in self._waiting.get(key, ()):
            event.set()


async def resolve(hostname: str) -> Sequence[str]:
    """The addresses of a name as this machine resolves it; none where it does not."""
    try:
        with trio.fail_after(5):
            found = await trio.socket.getaddrinfo(hostname, None, type=socket.SOCK_STREAM)
    except (OSError, trio.TooSlowError, UnicodeError) as error:
        log.warning("name %r does not resolve: %s", hostname, error)
        return ()
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
