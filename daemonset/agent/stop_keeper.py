"""Keeps the node's stops (host_stops) as they are decided (stops), whoever asks for them when."""

import logging
from collections.abc import Sequence

import trio

from daemonset.agent.capture import CaptureError
from daemonset.agent.host_stops import LEASE, HostStops
from daemonset.agent.pods import Pod
from daemonset.agent.stops import VARIABLE, Stops, Uncaptured, decide_stops

logger = logging.getLogger("daemonset.agent")

CHECK_INTERVAL = 10.0
"""Seconds between two looks at rules that are there."""
RENEW = LEASE / 6


class StopKeeper:
    """The stops of one node.

    Until `know` has been called for the first time, all that an agent before this one has left
    stays; afterwards its pods count as not captured until somebody says otherwise.
    """

    def __init__(self, rules: HostStops, form: Uncaptured) -> None:
        self.complaint = ""
        """Why the rules are not as they should be; "" when they are."""
        self._rules = rules
        self._permit = form is Uncaptured.PERMIT
        self._pods: Sequence[Pod] | None = None
        self._uncaptured: set[str] = set()
        self._decided = Stops()
        self._written: dict[str, str] | None = None  # None: whatever an earlier agent has left
        self._written_at = 0.0
        self._gap = ""
        self._lock = trio.Lock()
        self._changed = trio.Event()

    @property
    def permits(self) -> str:
        """Why traffic goes on that would be stopped otherwise; "" where it is stopped."""
        return f"its traffic goes on ({VARIABLE} is permit)" if self._permit else ""

    async def start(self) -> None:
        """Take over from the agent before this one. Raises CaptureError."""
        if not self._permit:
            self._uncaptured = await trio.to_thread.run_sync(self._rules.uids)

    def know(self, pods: Sequence[Pod]) -> None:
        """These are the node's pods now: stops follow at once where an address changes hands."""
        self._pods = pods
        self._uncaptured &= {pod.uid for pod in pods}
        if self._uncaptured or self._written != {}:
            self._changed.set()

    async def stop(self, pod: Pod) -> str:
        """Nothing from the pod's addresses or to them is to pass. Returns how that was done.

        Raises CaptureError when it is not so: the message says for which address, and why.
        """
        self._uncaptured.add(pod.uid)
        await self._write()
        spared = [
            self._decided.spared.get(address, f"{address} is not known to be its own")
            for address in pod.addresses
            if address not in self._decided.stopped
        ]
        if spared:
            raise CaptureError("it cannot be stopped on the node either: " + "; ".join(spared))
        how = "the node lets nothing pass from it or to it, by its addresses"
        return f"{how} ({self._gap})" if self._gap else how

    async def lift(self, uid: str) -> None:
        """The pod is captured, or has left. Raises CaptureError: then it is tried again."""
        self._uncaptured.discard(uid)
        await self._write()

    async def remove(self) -> None:
        """For good. Raises CaptureError."""
        async with self._lock:
            await trio.to_thread.run_sync(self._rules.remove)
            self._written = {}

    async def run(self) -> None:
        """Follow the pods, repair and renew, until cancelled. What fails is tried again."""
        while True:
            changed = self._changed = trio.Event()
            try:
                await self._write()
                await self._repair()
                self.complaint = ""
            except CaptureError as error:
                if self.complaint != str(error):
                    logger.error("pods that cannot be captured: %s", error)
                self.complaint = str(error)
            with trio.move_on_after(CHECK_INTERVAL):
                await changed.wait()

    async def _write(self) -> None:
        async with self._lock:
            if self._pods is None or (not self._uncaptured and self._written == {}):
                return
            own: set[str] = set()
            if self._uncaptured:
                own = await trio.to_thread.run_sync(self._rules.own_addresses)
            decided = decide_stops(self._pods, self._uncaptured, own)
            wanted = dict(decided.stopped)
            due = bool(wanted) and trio.current_time() - self._written_at > RENEW
            if wanted != self._written or due:
                self._gap = await trio.to_thread.run_sync(lambda: self._rules.write(wanted))
                self._written, self._written_at = wanted, trio.current_time()
                if self._gap:
                    logger.warning("pods that cannot be captured: %s", self._gap)
            self._decided = decided

    async def _repair(self) -> None:
        async with self._lock:
            written = self._written
            if not written or self._gap:  # half of it is missing then, and known to be
                return
            wrong = await trio.to_thread.run_sync(lambda: self._rules.wrong(written))
            if wrong:
                logger.error("what the node stops was tampered with, repaired: %s", wrong)
                self._gap = await trio.to_thread.run_sync(lambda: self._rules.write(written))
