"""The delta (incremental) xDS protocol, client side, without input or output.

One stream carries several types. Per type the client remembers which resources it holds at which
version, so that a new stream begins where the last one ended. Each response is applied by someone
else and then answered: an ACK, or a NACK that names what was refused and why; what is good in a
refused response is in force all the same.

A type is subscribed to as a whole (wildcard), or on demand: then single keys are asked for, and a
key is settled by a resource of that name, by one that carries the key as an alias (a workload is
named by its uid and asked for by its address), or by its removal, which says that there is none.

Source: Envoy's "xDS REST and gRPC protocol", incremental xDS.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import islice
from typing import Final

ADDRESS_TYPE: Final = "type.googleapis.com/istio.workload.Address"
AUTHORIZATION_TYPE: Final = "type.googleapis.com/istio.security.Authorization"
WILDCARD: Final = "*"

_NACK_DETAILS: Final = 20


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource as it came: ``type_url`` and ``body`` are those of the message inside."""

    name: str
    version: str
    aliases: tuple[str, ...]
    type_url: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Rejection:
    """A resource that cannot be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Request:
    """What the client says. ``error`` makes it a NACK; it is one of these only with a nonce."""

    type_url: str
    subscribe: tuple[str, ...] = ()
    unsubscribe: tuple[str, ...] = ()
    initial_versions: Mapping[str, str] = field(default_factory=dict)
    nonce: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    """What the server says."""

    type_url: str
    nonce: str
    resources: tuple[Resource, ...] = ()
    removed: tuple[str, ...] = ()


class Outcome(Enum):
    """How a look-up of one key ended."""

    FOUND = "found"
    ABSENT = "absent"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Update:
    """A response to be applied: ``resources`` and ``removed`` go to the handler, and then
    :meth:`DeltaState.finish` makes the answer. ``refused`` never reach the handler."""

    type_url: str
    nonce: str
    resources: tuple[Resource, ...]
    removed: tuple[str, ...]
    refused: tuple[Rejection, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What follows from an applied update: the request to send, and the keys that are settled."""

    request: Request
    rejections: tuple[Rejection, ...]
    settled: Mapping[str, Outcome]


class _Type:
    """What is known of one type."""

    def __init__(self, wildcard: bool) -> None:
        self.wildcard = wildcard
        self.answered = False
        # Name -> version in force; "" where a resource was refused, so that it is sent again.
        self.versions: dict[str, str] = {}
        # Only on demand: name -> aliases, alias -> names (two pods can have one address).
        self.aliases: dict[str, tuple[str, ...]] = {}
        self.names: dict[str, set[str]] = {}
        # Key -> outcome; None while the server owes the answer.
        self.demanded: dict[str, Outcome | None] = {}
        # The demanded keys without a resource, longest known first.
        self.absent: dict[str, None] = {}

    def hold(self, resource: Resource, version: str) -> list[str]:
        """Takes note of a resource; the aliases that it no longer has."""
        lost = self.drop(resource.name)
        self.versions[resource.name] = version
        if not self.wildcard and resource.aliases:
            self.aliases[resource.name] = resource.aliases
            for alias in resource.aliases:
                self.names.setdefault(alias, set()).add(resource.name)
        return lost

    def drop(self, name: str) -> list[str]:
        """Forgets a resource; the aliases that now stand for nothing."""
        self.versions.pop(name, None)
        lost = []
        for alias in dict.fromkeys(self.aliases.pop(name, ())):
            holders = self.names[alias]
            holders.discard(name)
            if not holders:
                del self.names[alias]
                lost.append(alias)
        return lost

    def lookup(self, key: str) -> Outcome | None:
        """What the resources that are held say of ``key``."""
        versions = [self.versions[name] for name in self.names.get(key, ())]
        if key in self.versions:
            versions.append(self.versions[key])
        if not versions:
            return None
        return Outcome.FOUND if any(versions) else Outcome.REJECTED

    def settle(self, key: str, outcome: Outcome) -> None:
        """Takes note of the answer for a demanded key."""
        self.demanded[key] = outcome
        if outcome is Outcome.ABSENT:
            self.absent[key] = None
        else:
            self.absent.pop(key, None)


class DeltaState:
    """The state of the client over all its streams.

    Args:
        types: type URL -> whether it is subscribed to as a whole.
        absent_limit: how many keys without a resource stay subscribed to; the oldest give way.
    """

    def __init__(self, types: Mapping[str, bool], absent_limit: int = 65536) -> None:
        self._types = {type_url: _Type(wildcard) for type_url, wildcard in types.items()}
        self._absent_limit = absent_limit

    @property
    def warm(self) -> bool:
        """Whether the first response of every wildcard type has been applied."""
        return all(kind.answered for kind in self._types.values() if kind.wildcard)

    def count(self, type_url: str) -> int:
        """Resources held of one type."""
        return len(self._types[type_url].versions)

    def start(self) -> list[Request]:
        """The requests that begin a new stream, one for each type."""
        requests = []
        for type_url, kind in self._types.items():
            subscribe: tuple[str, ...] = ()
            unsubscribe: tuple[str, ...] = ()
            if not kind.wildcard:
                # An empty list would mean everything. The star is taken back in the same breath.
                subscribe, unsubscribe = (WILDCARD, *kind.demanded), (WILDCARD,)
            requests.append(
                Request(type_url, subscribe, unsubscribe, initial_versions=dict(kind.versions))
            )
        return requests

    def receive(self, response: Response) -> Update:
        """Sorts a response into what can be applied and what is refused unseen."""
        if response.type_url not in self._types:
            refusal = Rejection(response.type_url, "this type was not subscribed to")
            return Update(response.type_url, response.nonce, (), (), (refusal,))
        good: list[Resource] = []
        refused: list[Rejection] = []
        for resource in response.resources:
            if not resource.name:
                refused.append(Rejection("(unnamed)", "a resource needs a name"))
            elif resource.type_url != response.type_url:
                reason = f"has the type {resource.type_url or 'of an empty message'}"
                refused.append(Rejection(resource.name, reason))
            else:
                good.append(resource)
        sent = {resource.name for resource in response.resources}
        removed = tuple(name for name in dict.fromkeys(response.removed) if name not in sent)
        return Update(response.type_url, response.nonce, tuple(good), removed, tuple(refused))

    def finish(self, update: Update, rejections: Iterable[Rejection] = ()) -> Answer:
        """Takes note of what was applied. ``rejections`` are the handler's."""
        every = (*update.refused, *rejections)
        kind = self._types.get(update.type_url)
        settled: dict[str, Outcome] = {}
        request = Request(update.type_url, nonce=update.nonce, error=nack_message(every))
        if kind is None:
            return Answer(request, every, settled)
        kind.answered = True
        touched: dict[str, Outcome] = {rejection.name: Outcome.REJECTED for rejection in every}
        for name in update.removed:
            for key in (name, *kind.drop(name)):
                touched[key] = Outcome.ABSENT
        refused = {rejection.name for rejection in every}
        for resource in update.resources:
            lost = kind.hold(resource, "" if resource.name in refused else resource.version)
            touched |= dict.fromkeys(lost, Outcome.ABSENT)
            touched |= dict.fromkeys((resource.name, *resource.aliases), Outcome.FOUND)
        for key in touched.keys() & kind.demanded.keys():
            settled[key] = kind.lookup(key) or touched[key]
            kind.settle(key, settled[key])
        dropped = self._trim(kind)
        if dropped:
            request = replace(request, unsubscribe=dropped)
        return Answer(request, every, settled)

    def demand(self, type_url: str, key: str) -> Request | Outcome | None:
        """Asks for a key of an on-demand type.

        Returns the outcome where it is known (the server tells of later changes by itself), the
        request to send where it was not asked for before, None where the answer is on its way.

        Raises:
            ValueError: the type is subscribed to as a whole, or the key is no name.
        """
        kind = self._types[type_url]
        if kind.wildcard:
            raise ValueError(f"{type_url} is not subscribed to on demand")
        if not key or key == WILDCARD:
            raise ValueError(f"{key!r} is not the name of a resource")
        if key in kind.demanded:
            return kind.demanded[key]
        held = kind.lookup(key)
        if held is not None:
            return held
        kind.demanded[key] = None
        return Request(type_url, subscribe=(key,))

    def release(self, type_url: str, key: str) -> Request | None:
        """Gives up a key whose answer has not come; the request that tells the server."""
        kind = self._types[type_url]
        if key not in kind.demanded or kind.demanded[key] is not None:
            return None
        del kind.demanded[key]
        return Request(type_url, unsubscribe=(key,))

    def _trim(self, kind: _Type) -> tuple[str, ...]:
        """The oldest keys without a resource, no longer demanded, where there are too many."""
        if len(kind.absent) <= self._absent_limit:
            return ()
        dropped = tuple(islice(kind.absent, len(kind.absent) - self._absent_limit * 3 // 4))
        for key in dropped:
            del kind.absent[key], kind.demanded[key]
        return dropped


def nack_message(rejections: Sequence[Rejection]) -> str:
    """ "name: reason; name: reason", cut where there are many; "" for none."""
    parts = [f"{one.name}: {one.reason}" for one in rejections[:_NACK_DETAILS]]
    if len(rejections) > _NACK_DETAILS:
        parts.append(f"and {len(rejections) - _NACK_DETAILS} more")
    return "; ".join(parts)
