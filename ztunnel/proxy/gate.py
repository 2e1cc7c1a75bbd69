"""The gate of a pod: lets first packets to pods of the same node pass by the proxy.

Each pod's gate holds the queue of its namespace (`kernel.direct_rules`). A first packet that leaves
the pod is judged there as a connection that was accepted would be; if it may go to a neighbour, it
goes with a verdict, and the neighbour's gate, which hears of it before it arrives, lets it in. In
every other case it goes on without a verdict, and is captured as ever: what must be refused is
refused there, in words.

One worker of a node has the gates of all pods, for both ends of a connection must be known in one
place. When it dies, first packets between pods of the node wait in their senders for its successor,
which ends what it finds under way, since nobody has watched that meanwhile.
"""

import errno
import logging
import select
from collections.abc import Callable, MutableMapping
from contextlib import ExitStack
from typing import Final

from ztunnel.kernel import direct_rules
from ztunnel.linux.conntrack_entries import Conntrack
from ztunnel.linux.netlink import NetlinkSocket
from ztunnel.linux.nftables import subscribe
from ztunnel.linux.packet_queue import OUTPUT, PacketQueue, Syn, is_bound
from ztunnel.linux.sockets import SocketAddress
from ztunnel.linux.tcp_sockets import TcpEndings, TcpSockets
from ztunnel.mesh.authorize import authorize
from ztunnel.mesh.decision import Hbone
from ztunnel.mesh.outbound import decide
from ztunnel.proxy.admit import admit
from ztunnel.proxy.direct import DirectFlow, DirectFlows, DirectInbound, DirectOutbound
from ztunnel.proxy.gate_rules import GateRules
from ztunnel.proxy.local_pod import LocalPod
from ztunnel.proxy.neighbour import Neighbour, find_neighbour
from ztunnel.relay.flow import ClosedBy

log = logging.getLogger("ztunnel.proxy")

_DNS_PORT: Final = 53
TAKEN: Final = (errno.EPERM, errno.EBUSY)
"""What a queue says that somebody else has."""


class Gate:
    """The gate of one pod. Raises OSError where it cannot be had.

    Args:
        flows: all connections that have gone through gates of this node.
        gates: of all pods of this node; one that has failed leaves it.
        number: where the search for a free owner's number begins.
        stir: called when the rules of the pod, which were not there, may be there now.
    """

    def __init__(
        self,
        pod: LocalPod,
        flows: DirectFlows,
        gates: "MutableMapping[LocalPod, Gate]",
        number: int,
        stir: Callable[[], None],
    ) -> None:
        self.pod = pod
        self.closed = False
        self._stir = stir
        self._rule_changes: NetlinkSocket | None = None
        self._context = pod.context
        self._flows = flows
        self._gates = gates
        self._endings: TcpEndings | None = None
        self._namespace = pod.namespace
        with ExitStack() as stack:
            self._queue = PacketQueue(self._namespace, ())
            stack.callback(self._queue.close)
            self.owner = self._take_number(number)
            self._queue.bind(direct_rules.QUEUE)
            self.sockets = TcpSockets(self._namespace)
            stack.callback(self.sockets.close)
            self._conntrack = Conntrack(self._namespace)
            stack.callback(self._conntrack.close)
            self._end_orphans()
            stack.pop_all()
        self.rules = GateRules(pod, self.owner)
        self._engine = self._context.engine
        self._engine.register(self._queue.fd, self, select.EPOLLIN)

    @property
    def is_open(self) -> bool:
        """Whether the pod's rules ask it about first packets."""
        return self.rules.ask

    def ask_about(self, addresses: frozenset[str]) -> None:
        """Has first packets to and from these addresses queued, and no others, as soon as the pod's
        rules are there."""
        self.rules.keep_filled(addresses)
        if self.rules.ask:
            self.ignore_rules()
        elif self._rule_changes is None:
            self._watch_rules()
            # They may have come in between.
            self.rules.changed()
            self.rules.keep_filled(addresses)

    def _watch_rules(self) -> None:
        try:
            self._rule_changes = subscribe(self._namespace)
        except OSError as error:
            log.debug("pod %s: changes of rules are only looked for: %s", self.pod, error)
        else:
            fd = self._rule_changes.sock.fileno()
            self._engine.register(fd, _RulesEar(self), select.EPOLLIN)

    def ignore_rules(self) -> None:
        """Hears no more of changes of the pod's rules."""
        changes, self._rule_changes = self._rule_changes, None
        if changes is not None:
            self._engine.unregister(changes.sock.fileno())
            changes.close()

    def rules_changed(self) -> None:
        """Somebody has changed rules of the pod."""
        if self._rule_changes is not None:
            self._rule_changes.drain_notifications()
            self.rules.changed()
            self._stir()

    def _take_number(self, first: int) -> int:
        for offset in range(direct_rules.OWNERS):
            number = (first + offset) % direct_rules.OWNERS
            try:
                self._queue.bind(direct_rules.FIRST_OWNER + number)
            except OSError as error:
                if error.errno not in TAKEN:
                    raise
            else:
                return number
        raise OSError(errno.EBUSY, "every number for the owner of connections is taken")

    def _end_orphans(self) -> None:
        """Aborts connections that a worker let go which is no more: nobody has judged them."""
        ended = 0
        alive: dict[int, bool] = {self.owner: False}
        for near, far, mark in self._conntrack.marked(direct_rules.TAG, direct_rules.TAG_MASK):
            owner = direct_rules.owner_of(mark)
            if owner not in alive:
                alive[owner] = is_bound(self._namespace, direct_rules.FIRST_OWNER + owner)
            if not alive[owner]:
                # At the client's end, or where the connection came in.
                ended += self.sockets.abort(near, far) or self.sockets.abort(far, near)
        if ended:
            log.warning(
                "%d connections of pod %s were ended: the worker that had let them go is gone",
                ended, self.pod,
            )  # fmt: skip

    # ---- first packets

    def ready(self, events: int) -> None:
        """Judges the packets that wait."""
        self._judge()

    def _judge(self) -> bool:
        """Whether there were any."""
        waiting = self._queue.take()
        for syn in waiting:
            mark = 0
            try:
                if not self.closed:
                    mark = self._leaves(syn) if syn.hook == OUTPUT else self._arrives(syn)
            except Exception:
                log.exception("a connection of pod %s cannot go past the proxy", self.pod)
            self._queue.accept(syn, mark)
        return bool(waiting)

    def _judge_all(self) -> None:
        """Once nothing more is queued. Where there is no gate any more, nothing goes past the
        proxies: packets go where the rules lead them."""
        try:
            while self._judge():
                pass
        except OSError as error:
            log.warning(
                "first packets of pod %s are lost, they are sent again: %s", self.pod, error
            )

    def failed(self, error: BaseException) -> None:
        """The queue is broken: without it, first packets wait; without the sets, they need not."""
        log.error("the gate of pod %s is closed: %r", self.pod, error)
        self._gates.pop(self.pod, None)
        self.close()

    def _leaves(self, syn: Syn) -> int:
        """The verdict on a connection that the pod begins; 0 for none."""
        flows = self._flows
        known = flows.begun.get((syn.source, syn.destination))
        if known is not None:
            if known.sequence == syn.sequence:
                return known.mark  # sent again
            known.look()  # the pair of ports is used again before we heard of the end
            if not known.closed:
                return 0
        neighbour = self._neighbour(syn.source, syn.destination)
        if neighbour is None or neighbour.target.connect != neighbour.target.destination:
            return 0
        far = self._gates.get(neighbour.pod)
        if far is None or far is self or not far.is_open:
            return 0
        if not flows.trusts(self.pod, neighbour.pod):
            return 0
        verdict = authorize(self._context.state, neighbour.workload, neighbour.attributes)
        if not verdict.allowed:
            return 0  # refused where it is captured
        target = neighbour.target.destination
        if target == syn.destination:
            mark = direct_rules.verdict(self.owner, 0)
        else:
            mark = self.rules.mark_for(target)
        for gate in (self, far):
            gate.watch()
        flow = DirectFlow(flows, self, far, syn.source, syn.destination, target, syn.sequence, mark)
        flows.add(flow)
        self._open(flow, neighbour)
        return mark

    def _arrives(self, syn: Syn) -> int:
        """The verdict on a connection that comes to the pod; 0 for none."""
        flow = self._flows.arriving.get((syn.source, syn.destination))
        if flow is None or flow.far is not self or flow.sequence != syn.sequence:
            return 0
        flow.arrived = True
        return direct_rules.verdict(self.owner, 0)

    def _neighbour(self, client: SocketAddress, destination: SocketAddress) -> Neighbour | None:
        context, pod = self._context, self.pod
        workload = pod.workload()
        if workload is None or (destination[1] == _DNS_PORT and context.config.dns.enabled):
            return None
        route = pod.routes.certain(destination)
        if route is None:
            decision = decide(
                context.state,
                workload,
                destination,
                rng=context.rng,
                illegal_ports=context.illegal_ports,
            )
            if not isinstance(decision, Hbone):
                return None
            route = pod.routes.of(destination, decision)
        return find_neighbour(pod, client[0], workload, route.decision)

    def _open(self, flow: DirectFlow, neighbour: Neighbour) -> None:
        """Both sides' records."""
        context = self._context
        client, target = neighbour.client, neighbour.target
        outbound = DirectOutbound(context, self.pod.uid, flow.client)
        service = neighbour.service
        ends = context.labels.ends(
            False,
            context.peers.workload(client),
            context.peers.workload(neighbour.workload),
            context.peers.service(service) if service is not None else None,
            client.identity.uri,
            neighbour.workload.identity.uri,
        )
        reason = f"straight to workload {neighbour.workload} of this node, past the proxies"
        record = outbound.open_record(ends, flow.target, "", reason)
        record.original_destination = flow.destination
        inbound = DirectInbound(neighbour, flow.client)
        record = inbound.open(target, f"straight from workload {client} of this node")
        admit(context, record, neighbour.workload, neighbour.attributes)
        flow.belongs_to(outbound, inbound)

    # ---- ends

    def watch(self) -> None:
        """Hears of sockets that end from now on. Raises OSError."""
        if self._endings is None:
            self._endings = TcpEndings(self._namespace)
            self._engine.register(self._endings.fd, _Ear(self), select.EPOLLIN)

    def unwatch(self) -> None:
        """No connection of the pod is under way: spare the kernel the telling."""
        endings, self._endings = self._endings, None
        if endings is not None:
            self._engine.unregister(endings.fd)
            endings.close()

    def hear(self) -> None:
        """Some sockets of the pod have ended."""
        flows, endings = self._flows, self._endings
        if endings is None:
            return
        for local, remote, tally in endings.take():
            flow = flows.begun.get((local, remote))
            if flow is not None and flow.near is self:
                flow.client_ended(tally)
            flow = flows.arriving.get((remote, local))
            if flow is not None and flow.far is self:
                flow.server_ended(tally)

    def how_ended(self, flow: DirectFlow) -> tuple[ClosedBy | None, bool]:
        """(who closed first, whether it was reset) of a connection that the pod opened."""
        try:
            ending = self._conntrack.ending(flow.client, flow.destination)
        except OSError as error:
            log.debug("how a connection ended is not known: %s", error)
            ending = None
        if ending is None:
            return None, False
        if ending.by_client or ending.by_server:
            return ClosedBy.CLIENT if ending.by_client else ClosedBy.SERVER, ending.reset
        return None, ending.reset

    # ---- life

    def shut(self) -> None:
        """Lets nothing more go; connections under way go on."""
        self.rules.empty()
        self._judge_all()  # what waits when the queue is given up is dropped
        try:
            self._queue.unbind(direct_rules.QUEUE)
        except OSError as error:
            log.warning("the queue of pod %s is not given up: %s", self.pod, error)

    def close(self) -> None:
        """Leaves nothing behind in the namespace."""
        self.closed = True
        self._engine.unregister(self._queue.fd)
        self.ignore_rules()
        self.unwatch()
        self.rules.empty()
        self._judge_all()
        self._queue.close()
        self.sockets.close()
        self._conntrack.close()


class _Ear:
    """Listens for a gate."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def ready(self, events: int) -> None:
        self._gate.hear()

    def failed(self, error: BaseException) -> None:
        log.error("pod %s does not hear of connections that end: %r", self._gate.pod, error)
        self._gate.unwatch()


class _RulesEar:
    """Listens for changes of a pod's rules."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def ready(self, events: int) -> None:
        self._gate.rules_changed()

    def failed(self, error: BaseException) -> None:
        log.warning("pod %s: changes of rules are not heard of: %r", self._gate.pod, error)
        self._gate.ignore_rules()
