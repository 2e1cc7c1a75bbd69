"""The delta ADS client: keeps a stream to the control plane, applies what comes, answers it.

While the control plane is away, what was applied last stays in force. Resources are handed to one
handler, response by response, and a response is acknowledged when the handler is done with it.
"""

from __future__ import annotations

import logging
import queue
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Protocol

import grpc
import trio
from envoy.service.discovery.v3 import ads_pb2_grpc

from ztunnel.telemetry.counters import Counters
from ztunnel.xds.channel import ChannelError, ControlPlane
from ztunnel.xds.messages import DeltaResponse, Node, decode_response, encode_request
from ztunnel.xds.protocol import (
    DeltaState,
    Outcome,
    Rejection,
    Request,
    Resource,
)

FIRST_DELAY: Final = 0.01
LAST_DELAY: Final = 15.0
_JITTER: Final = 0.2  # proxies of a whole cluster must not come back in step

log = logging.getLogger("ztunnel.xds")


class Handler(Protocol):
    """Takes resources into force."""

    async def apply(
        self, type_url: str, resources: Sequence[Resource], removed: Sequence[str]
    ) -> list[Rejection]:
        """Applies one response as one step: ``removed`` are names that are gone. What cannot be
        used is returned with its reason; the rest is in force when this returns."""
        ...


class LookupTimeout(Exception):
    """The control plane did not answer a look-up in time."""


class _Waiting:
    """A look-up under way, and how many wait for it."""

    def __init__(self) -> None:
        self.event = trio.Event()
        self.outcome: Outcome | None = None
        self.callers = 0


class XdsClient:
    """Args:
        control_plane: where to connect to.
        node: who we are (:func:`ztunnel.xds.messages.node`).
        types: type URL -> whether all of it is wanted; False: on demand.
        handler: takes the resources into force.
        counters: where the client counts.
        lookup_timeout: seconds for an on-demand look-up.
        jitter: spreads the seconds before the next attempt.

    Attributes:
        warm: set when the first response of each type that is wanted as a whole has been applied.
            Resources of it that were refused do not keep the proxy from being ready.
    """

    def __init__(
        self,
        control_plane: ControlPlane,
        node: Node,
        types: dict[str, bool],
        handler: Handler,
        counters: Counters,
        lookup_timeout: float,
        jitter: Callable[[float], float] | None = None,
    ) -> None:
        self._control_plane = control_plane
        self._node = node
        self._state = DeltaState(types)
        self._types = types
        self._handler = handler
        self._counters = counters
        self._lookup_timeout = lookup_timeout
        self._jitter = jitter if jitter is not None else _spread
        self._requests: queue.SimpleQueue[Any] | None = None
        self._waiting: dict[tuple[str, str], _Waiting] = {}
        self._received = 0
        self.warm = trio.Event()
        if self._state.warm:
            self.warm.set()

    @property
    def connected(self) -> bool:
        """Whether a stream is open, as far as is known."""
        return self._requests is not None

    async def run(self) -> None:
        """Keeps a stream until cancelled."""
        delay = FIRST_DELAY
        while True:
            self._received = 0
            reason, text = await self._attempt()
            if self._received:
                # A server that closes streams now and then, as istiod does, is not in trouble.
                delay = FIRST_DELAY
            self._counters.counter("istio_xds_connection_terminations", reason).add()
            wait = self._jitter(delay)
            log.log(
                logging.INFO if self._received else logging.WARNING,
                "no stream to the control plane %s: %s; next attempt in %.2f s, what was received "
                "stays in force",
                self._control_plane.target,
                text,
                wait,
            )
            await trio.sleep(wait)
            delay = min(delay * 2, LAST_DELAY)

    async def lookup(self, type_url: str, key: str) -> Outcome:
        """Asks for one key of an on-demand type: "network/ip", a workload's uid, or
        "namespace/hostname". What is found is in force when this returns. Callers of one key
        share one question.

        Raises:
            LookupTimeout: no answer in time, also because there is no stream.
            ValueError: the key is no name, or the type is not on demand.
        """
        started = trio.current_time()
        answer = self._state.demand(type_url, key)
        if isinstance(answer, Outcome):
            return answer
        if answer is not None:
            self._send(answer)
        waiting = self._waiting.setdefault((type_url, key), _Waiting())
        waiting.callers += 1
        try:
            with trio.move_on_after(self._lookup_timeout):
                await waiting.event.wait()
        finally:
            waiting.callers -= 1
            if not waiting.callers and waiting.outcome is None:
                self._give_up(type_url, key)
        outcome = waiting.outcome
        self._counters.histogram(
            "ztunnel_xds_lookup_duration_seconds", outcome.value if outcome else "timeout"
        ).observe(trio.current_time() - started)
        if outcome is None:
            raise LookupTimeout(
                f"the control plane did not answer for {key!r} within {self._lookup_timeout} s"
                + ("" if self.connected else ", there is no stream to it")
            )
        return outcome

    def _give_up(self, type_url: str, key: str) -> None:
        del self._waiting[type_url, key]
        request = self._state.release(type_url, key)
        if request is not None:
            self._send(request)

    def _send(self, request: Request) -> None:
        """Queues a request on the open stream; without one, the next stream begins with it."""
        if self._requests is not None:
            self._requests.put(encode_request(request, None))

    async def _attempt(self) -> tuple[str, str]:
        """One stream from beginning to end: why it ended, as a metric label and in words."""
        try:
            metadata = self._control_plane.metadata()
            channel = self._control_plane.connect()
        except ChannelError as error:
            return "ConnectionError", str(error)
        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        sender: Node | None = self._node
        for request in self._state.start():
            requests.put(encode_request(request, sender))
            sender = None
        stub = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel)
        call = stub.DeltaAggregatedResources(_drain(requests), metadata=metadata)
        connected = self._counters.gauge("ztunnel_xds_connected")
        self._requests = requests
        try:
            while True:
                # The thread comes back when the call is cancelled below.
                message = await trio.to_thread.run_sync(next, call, None, abandon_on_cancel=True)
                if message is None:
                    return "Complete", "the control plane ended the stream"
                connected.set(1)
                self._received += 1
                await self._apply(message)
        except grpc.RpcError:
            return self._why(call)
        finally:
            self._requests = None
            connected.set(0)
            requests.put(None)
            call.cancel()
            channel.close()

    def _why(self, call: grpc.Call) -> tuple[str, str]:
        code = call.code()
        text = f"{code.name}: {call.details()}"
        if self._received:
            return "Reconnect", text
        return ("ConnectionError" if code is grpc.StatusCode.UNAVAILABLE else "Error"), text

    async def _apply(self, message: DeltaResponse) -> None:
        started = trio.current_time()
        size = message.ByteSize()
        response = decode_response(message)
        update = self._state.receive(response)
        rejections: list[Rejection] = []
        if update.resources or update.removed:
            try:
                rejections = await self._handler.apply(
                    update.type_url, update.resources, update.removed
                )
            except Exception as error:
                # Nobody knows how far it came. Refusing all of it has it sent again.
                log.exception("cannot apply a response of %s", update.type_url)
                reason = f"internal error: {error!r}"
                rejections = [Rejection(one.name, reason) for one in update.resources]
                rejections = rejections or [Rejection(update.type_url, reason)]
        answer = self._state.finish(update, rejections)
        self._send(answer.request)
        self._count(update.type_url, size, len(answer.rejections), started)
        for rejection in answer.rejections:
            log.error("refused %s of %s: %s", rejection.name, update.type_url, rejection.reason)
        for key, outcome in answer.settled.items():
            waiting = self._waiting.pop((update.type_url, key), None)
            if waiting is not None:
                waiting.outcome = outcome
                waiting.event.set()
        if self._state.warm and not self.warm.is_set():
            log.info("the first state of all types is in force")
            self.warm.set()

    def _count(self, type_url: str, size: int, refused: int, started: float) -> None:
        # A stranger's type URL must not become a label.
        url = type_url if type_url in self._types else "unknown"
        counters = self._counters
        counters.counter("istio_xds_message", url).add()
        counters.counter("istio_xds_message_bytes", url).add(size)
        counters.gauge("ztunnel_xds_last_response_timestamp_seconds", url).set(time.time())
        counters.histogram("ztunnel_xds_apply_duration_seconds", url).observe(
            trio.current_time() - started
        )
        if refused:
            counters.counter("ztunnel_xds_rejected_resources", url).add(refused)
        if type_url in self._types:
            counters.gauge("ztunnel_xds_resources", url).set(self._state.count(type_url))


def _spread(seconds: float) -> float:
    return min(seconds * random.uniform(1 - _JITTER, 1 + _JITTER), LAST_DELAY)


def _drain(requests: queue.SimpleQueue[Any]) -> Iterator[Any]:
    """What grpcio reads, in a thread of its own, until None ends it."""
    while (request := requests.get()) is not None:
        yield request
