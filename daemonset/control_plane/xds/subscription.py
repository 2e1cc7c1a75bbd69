"""What one client of delta ADS has, wants and must be sent next. No I/O.

At most one response of a type is on its way to a client; what changes meanwhile is gathered by
name, so that a slow client costs one difference and holds up nobody.

Types are sent in the order that never leaves a gap: new policies before the workloads that name
them, and policies are taken away only after the workloads that named them have changed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from envoy.service.discovery.v3 import discovery_pb2

from daemonset.control_plane.translation.resident import Viewpoint
from daemonset.control_plane.translation.resource import ADDRESS, AUTHORIZATION, WORKLOAD
from daemonset.control_plane.xds.access import EVERYTHING, Access
from daemonset.control_plane.xds.snapshot import (
    NOTHING,
    Difference,
    Differences,
    Entry,
    Snapshot,
    difference,
)

_log = logging.getLogger("daemonset.control_plane.xds")

WILDCARD = "*"


@dataclass(slots=True)
class TypeStatus:
    """What a client said about one type; for people."""

    wildcard: bool
    names: int
    resources: int
    sent: int
    acked: int
    rejected: int
    acked_generation: int
    last_rejection: str
    waiting_for_ack: bool


class _Subscription:
    """One type of one client, as it is seen from ``viewpoint``."""

    def __init__(
        self,
        type_url: str,
        request: discovery_pb2.DeltaDiscoveryRequest,
        viewpoint: Viewpoint | None,
    ) -> None:
        self.type_url = type_url
        self._viewpoint = viewpoint
        subscribed = list(request.resource_names_subscribe)
        # "For all resource types, an empty list in the first request is a wildcard" (xDS delta).
        self.wildcard = not subscribed
        self.names: set[str] = set()
        self.asked: set[str] = set()
        self.known: dict[str, str] | None = dict(request.initial_resource_versions)
        self.base: Snapshot | None = None
        self._owed: set[str] = set()
        self.first_pending = True
        self.nonce = ""  # of the response that is on its way, else empty
        self.in_flight_generation = 0
        self.acked_generation = 0
        self.sent = 0
        self.acked = 0
        self.rejected = 0
        self.last_rejection = ""
        self.change(request)

    def change(self, request: discovery_pb2.DeltaDiscoveryRequest) -> None:
        subscribed = set(request.resource_names_subscribe)
        unsubscribed = set(request.resource_names_unsubscribe)
        before = self.wildcard
        if WILDCARD in subscribed:
            self.wildcard = True
        if WILDCARD in unsubscribed:
            self.wildcard = False
        if before != self.wildcard:
            self._forget_base()
        names = subscribed - {WILDCARD}
        self.names |= names
        self.asked |= names
        self.names -= unsubscribed
        self.asked -= unsubscribed

    def _forget_base(self) -> None:
        """Wildcard clients share snapshots; the others have what they were sent, by name."""
        if self.base is not None:
            entries = self._entries(self.base)
            self.known = {name: entry.version for name, entry in entries.items()}
            self.base = None

    def _entries(self, snapshot: Snapshot) -> Mapping[str, Entry]:
        return snapshot.of_type(self.type_url, self._viewpoint) or {}

    def lacking(self, snapshot: Snapshot, differences: Differences, node: str) -> Difference:
        """What must be sent to bring this client to the snapshot."""
        entries = self._entries(snapshot)
        if self.wildcard:
            found = (
                differences.between(self.base, snapshot, self.type_url, self._viewpoint)
                if self.base is not None
                else difference(self.known or {}, entries.values())
            )
        else:
            wanted = self._wanted(snapshot, entries, node)
            found = difference(self.known or {}, wanted.values())
        owed = tuple(name for name in self._owed if name not in entries)
        if owed:
            found = Difference(found.changed, tuple(dict.fromkeys((*found.removed, *owed))))
        return self._with_asked(found, snapshot, entries)

    def owe(self, removed: tuple[str, ...]) -> None:
        """These names are to be removed at the client, but not in the next response."""
        self._owed.update(removed)

    def _wanted(
        self, snapshot: Snapshot, entries: Mapping[str, Entry], node: str
    ) -> dict[str, Entry]:
        names: set[str] = set()
        for key in self.names:
            names.update(self._resolve(key, snapshot, entries))
        if node and self.type_url == ADDRESS:
            names.update(snapshot.on_node(node))
        return {name: entries[name] for name in names if name in entries}

    def _resolve(self, key: str, snapshot: Snapshot, entries: Mapping[str, Entry]) -> list[str]:
        if self.type_url in (ADDRESS, WORKLOAD):
            return [name for name in snapshot.resolve(key) if name in entries]
        return [key] if key in entries else []

    def _with_asked(
        self, found: Difference, snapshot: Snapshot, entries: Mapping[str, Entry]
    ) -> Difference:
        """Whoever asks for a name gets an answer, also when it has it or when there is none."""
        if not self.asked:
            return found
        changed = {entry.name: entry for entry in found.changed}
        removed = dict.fromkeys(found.removed)
        for key in self.asked:
            names = self._resolve(key, snapshot, entries)
            for name in names:
                changed[name] = entries[name]
            if not names:
                removed[key] = None
        return Difference(tuple(changed.values()), tuple(removed))

    def sent_up_to(self, snapshot: Snapshot, sent: Difference, nonce: str) -> None:
        self.asked.clear()
        self._owed.difference_update(sent.removed)
        self._owed.difference_update(entry.name for entry in sent.changed)
        self.first_pending = False
        self.nonce = nonce
        self.sent += 1
        self.in_flight_generation = snapshot.generation
        if self.wildcard:
            self.base, self.known = snapshot, None
            return
        known = self.known if self.known is not None else {}
        for name in sent.removed:
            known.pop(name, None)
        known.update((entry.name, entry.version) for entry in sent.changed)
        self.known = known

    def status(self) -> TypeStatus:
        if self.base is not None:
            resources = len(self._entries(self.base))
        else:
            resources = len(self.known or ())
        return TypeStatus(
            wildcard=self.wildcard,
            names=len(self.names),
            resources=resources,
            sent=self.sent,
            acked=self.acked,
            rejected=self.rejected,
            acked_generation=self.acked_generation,
            last_rejection=self.last_rejection,
            waiting_for_ack=bool(self.nonce),
        )


class Client:
    """One stream. Feed it with requests; ask it for what is to be written.

    Attributes:
        access: what it may see.
    """

    def __init__(
        self,
        peer: str,
        differences: Differences,
        on_rejection: Callable[[], None],
        access: Access = EVERYTHING,
    ) -> None:
        self.peer = peer
        self.access = access
        self._on_rejection = on_rejection
        self.node_id = ""
        self.node_name = access.node_of("")
        self._differences = differences
        self._types: dict[str, _Subscription] = {}
        self._nonces = 0
        self._unknown: set[str] = set()
        self.connected_at = time.time()

    def receive(self, request: discovery_pb2.DeltaDiscoveryRequest, snapshot: Snapshot) -> None:
        """Take a request: a subscription, an acknowledgement, a rejection, or several of these.

        Raises:
            ForbiddenError: the client says of itself to be on a node that it is not on.
        """
        if request.HasField("node") and request.node.id:
            self.node_id = request.node.id
            fields = request.node.metadata.fields
            if "NODE_NAME" in fields:
                self.node_name = self.access.node_of(fields["NODE_NAME"].string_value)
        type_url = request.type_url
        subscription = self._types.get(type_url)
        if subscription is None:
            if snapshot.of_type(type_url) is None:
                if type_url not in self._unknown and len(self._unknown) < 16:
                    self._unknown.add(type_url)
                    _log.warning("%s asks for %s, which is not served", self, type_url)
                return
            viewpoint = self.access.viewpoint
            self._types[type_url] = _Subscription(type_url, request, viewpoint)
            return
        subscription.change(request)
        if request.response_nonce and request.response_nonce == subscription.nonce:
            self._answered(subscription, request)

    def _answered(
        self, subscription: _Subscription, request: discovery_pb2.DeltaDiscoveryRequest
    ) -> None:
        subscription.nonce = ""
        if request.HasField("error_detail"):
            subscription.rejected += 1
            self._on_rejection()
            subscription.last_rejection = request.error_detail.message
            short = subscription.type_url.rpartition("/")[2]
            _log.error("%s rejects %s: %s", self, short, request.error_detail.message)
        else:
            subscription.acked += 1
            subscription.acked_generation = subscription.in_flight_generation

    def next_response(self, snapshot: Snapshot) -> bytes | None:
        """The next encoded response, or None while there is nothing to send."""
        policies = self._types.get(AUTHORIZATION)
        policy_changes = NOTHING
        if policies is not None:
            policy_changes = policies.lacking(snapshot, self._differences, self.node_name)
        addresses = [
            (subscription, subscription.lacking(snapshot, self._differences, self.node_name))
            for subscription in map(self._types.get, (ADDRESS, WORKLOAD))
            if subscription is not None
        ]
        pending = [(item, changes) for item, changes in addresses if changes or item.first_pending]
        if policies is not None and (policy_changes.changed or policies.first_pending):
            if policies.nonce:
                return None
            if pending:
                policies.owe(policy_changes.removed)
                policy_changes = Difference(policy_changes.changed, ())
            return self._send(policies, snapshot, policy_changes)
        for subscription, changes in pending:
            if not subscription.nonce:
                return self._send(subscription, snapshot, changes)
        if policies is not None and policy_changes and not pending and not policies.nonce:
            return self._send(policies, snapshot, policy_changes)
        return None

    def _send(self, subscription: _Subscription, snapshot: Snapshot, changes: Difference) -> bytes:
        self._nonces += 1
        nonce = str(self._nonces)
        subscription.sent_up_to(snapshot, changes, nonce)
        head: bytes = discovery_pb2.DeltaDiscoveryResponse(
            system_version_info=str(snapshot.generation),
            type_url=subscription.type_url,
            removed_resources=changes.removed,
            nonce=nonce,
        ).SerializeToString()
        return b"".join([head, *(entry.encoded for entry in changes.changed)])

    def is_up_to_date(self, snapshot: Snapshot) -> bool:
        """Has it acknowledged (or rejected) all of this snapshot that it wants?"""
        return not any(
            item.nonce
            or item.first_pending
            or item.lacking(snapshot, self._differences, self.node_name)
            for item in self._types.values()
        )

    @property
    def waits_for_policies(self) -> bool:
        """Has it asked for addresses and not yet for the policies that those name?"""
        return ADDRESS in self._types and AUTHORIZATION not in self._types

    def status(self) -> dict[str, TypeStatus]:
        """By the last part of the type URL."""
        return {
            type_url.rpartition(".")[2]: item.status() for type_url, item in self._types.items()
        }

    def __str__(self) -> str:
        return f"{self.node_id or 'a client'} ({self.peer})"
