"""List-and-watch: what the API server holds of one kind, kept up to date.

The order of things is that of Kubernetes' own clients: list in pages, watch from the list's
resourceVersion on, go on from the last version seen (bookmarks move it while nothing changes), and
list again only when the API server has forgotten that version (410 Gone). All pauses are drawn at
random, so that many clients of a server that comes back do not come back at one moment, and a
limiter shared by all kinds keeps their lists from running at once.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import trio

from daemonset.kube.client import ApiError, ApiUnavailableError, Json, KubeClient

_log = logging.getLogger("daemonset.kube")


class Sink(Protocol):
    """Where objects go. None of it may block or raise. A list that breaks off begins anew."""

    def begin(self) -> None:
        """A list begins: what ``put`` does not bring until ``commit`` is gone."""
        ...

    def put(self, item: Json) -> None:
        """An object, new or changed."""
        ...

    def remove(self, item: Json) -> None:
        """An object is gone."""
        ...

    def commit(self) -> None:
        """The list is complete."""
        ...

    def set_absent(self, absent: bool) -> None:
        """The API server does not know the kind (there is nothing of it), or knows it again."""
        ...


@dataclass(frozen=True, slots=True)
class Resource:
    """A kind as the API serves it.

    Attributes:
        group: "" for the core.
        versions: any of these will do, the first best.
        query: selectors for list and watch.
    """

    group: str
    versions: tuple[str, ...]
    plural: str
    query: tuple[tuple[str, str], ...] = ()

    def path(self, version: str) -> str:
        base = f"/apis/{self.group}/{version}" if self.group else f"/api/{version}"
        return f"{base}/{self.plural}"

    def __str__(self) -> str:
        return f"{self.plural}.{self.group}" if self.group else self.plural


@dataclass(frozen=True, slots=True)
class Pace:
    """Times in seconds. ``settle``: changes within it are answered together."""

    first_pause: float = 0.2
    longest_pause: float = 30.0
    watch: float = 290.0
    absent: float = 5.0
    relist: float = 1.0
    settle: float = 1.0
    page: int = 500


class Reflector:
    """Keeps a sink up to date with one resource.

    Args:
        lists: how many lists may run at once.
        on_synced: called whenever what the sink has is known to be complete.

    Attributes:
        lists: completed. watches: begun. trouble: what is in the way now, or "".
    """

    def __init__(
        self,
        client: KubeClient,
        resource: Resource,
        sink: Sink,
        lists: trio.CapacityLimiter,
        on_synced: Callable[[], None],
        pace: Pace | None = None,
    ) -> None:
        self._client = client
        self._resource = resource
        self._sink = sink
        self._limiter = lists
        self._on_synced = on_synced
        self._pace = pace or Pace()
        self._version = resource.versions[0]
        self._from: str | None = None  # resourceVersion to watch from; None: list first
        self._failures = 0
        self._not_found = 0
        self.lists = 0
        self.watches = 0
        self.trouble = ""

    @property
    def version(self) -> str:
        """The version in which the kind is read now."""
        return self._version

    async def run(self) -> None:
        """Never returns; what goes wrong is logged, and tried again."""
        while True:
            try:
                if self._from is None:
                    await self._list()
                await self._watch()
            except ApiError as error:
                await self._after(error)
            except ApiUnavailableError as error:
                await self._pause(str(error))

    async def _after(self, error: ApiError) -> None:
        if error.status == 410:
            _log.info("%s: the history is gone, listing again", self._resource)
            self._from = None
            await trio.sleep(random.uniform(0, self._pace.relist))
        elif error.status == 404:
            self._from = None
            await self._look_for_another_version()
        else:
            await self._pause(str(error), error.retry_after)

    async def _list(self) -> None:
        resource = self._resource
        async with self._limiter:
            query = {**dict(resource.query), "limit": str(self._pace.page)}
            self._sink.begin()
            while True:
                page = await self._client.call("GET", resource.path(self._version), query)
                if self._not_found:
                    self._not_found = 0
                    self._sink.set_absent(False)
                for item in page.get("items") or ():
                    self._sink.put(item)
                # Thousands of objects take a while to read: others have their turn in between.
                await trio.lowlevel.checkpoint()
                meta = page["metadata"]
                if not meta.get("continue"):
                    break
                query["continue"] = meta["continue"]
        self._sink.commit()
        self.lists += 1
        self._from = meta["resourceVersion"]
        self._fine()

    async def _watch(self) -> None:
        assert self._from is not None
        self.watches += 1
        # At different moments for different kinds and replicas, as in Kubernetes' own clients.
        seconds = self._pace.watch * random.uniform(0.8, 1.0)
        query = {
            **dict(self._resource.query),
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._from,
            "timeoutSeconds": str(max(1, int(seconds))),
        }
        started = trio.current_time()
        with trio.move_on_after(seconds + self._pace.longest_pause):
            async with self._client.stream(self._resource.path(self._version), query) as events:
                self._fine()
                while (event := await events.next()) is not None:
                    self._take(event)
        if trio.current_time() - started < self._pace.first_pause:
            await self._pause("the API server ended a watch at once")

    def _take(self, event: Json) -> None:
        item = event.get("object")
        if not isinstance(item, dict):
            raise ApiUnavailableError(f"{self._resource}: an event without an object")
        kind = event.get("type")
        if kind == "ERROR":
            code, reason = item.get("code"), str(item.get("reason", ""))
            status = code if isinstance(code, int) else 500
            raise ApiError(status, reason, str(item.get("message", "")))
        version = item["metadata"]["resourceVersion"]
        if kind in ("ADDED", "MODIFIED"):
            self._sink.put(item)
        elif kind == "DELETED":
            self._sink.remove(item)
        self._from = version

    async def _look_for_another_version(self) -> None:
        """One after the other; whatever is known stays until all of them were missing twice, since
        a server that starts may not know its own kinds for a moment."""
        versions = self._resource.versions
        after = versions.index(self._version) + 1
        if after < len(versions):
            self._version = versions[after]
            return
        self._version = versions[0]
        self._not_found += 1
        if self._not_found == 1 and self.lists > 0:
            await trio.sleep(self._pace.absent * random.uniform(0.2, 0.4))
            return
        self._sink.begin()
        self._sink.commit()
        self._sink.set_absent(True)
        self._fine()
        await trio.sleep(self._pace.absent * random.uniform(0.8, 1.2))

    async def _pause(self, reason: str, at_least: float = 0.0) -> None:
        if reason != self.trouble:
            _log.warning("%s: %s; trying again", self._resource, reason)
        self.trouble = reason
        longest = min(self._pace.first_pause * 2**self._failures, self._pace.longest_pause)
        self._failures = min(self._failures + 1, 16)
        await trio.sleep(max(at_least, longest * random.uniform(0.5, 1.0)))

    def _fine(self) -> None:
        if self.trouble:
            _log.info("%s: is watched again", self._resource)
        self.trouble = ""
        self._failures = 0
        self._on_synced()
