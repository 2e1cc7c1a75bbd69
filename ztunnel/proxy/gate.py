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
import random
import select
import time
from contextlib import ExitStack
from typing import Final

from ztunnel.kernel import direct_rules
from ztunnel.linux.conntrack_entries import Conntrack
from ztunnel.linux.nft_tables import Element
from ztunnel.linux.nftables import Nftables
from ztunnel.linux.packet_queue import OUTPUT, PacketQueue, Syn, is_bound
from ztunnel.linux.sockets import SocketAddress
from ztunnel.linux.tcp_sockets import TcpEndings, TcpSockets
from ztunnel.mesh.authorize import authorize
from ztunnel.mesh.decision import Hbone
from ztunnel.mesh.outbound import decide
from ztunnel.mesh.workload import TunnelProtocol
from ztunnel.proxy.admit import admit
from ztunnel.proxy.context import Context
from ztunnel.proxy.direct import DirectFlow, DirectInbound, DirectOutbound
from ztunnel.proxy.local_pod import LocalPod
from ztunnel.proxy.neighbour import Neighbour, find_neighbour
from ztunnel.relay.flow import ClosedBy

log = logging.getLogger("ztunnel.proxy")

_DNS_PORT: Final = 53
_DISTRUST: Final = 600.0  # seconds for which a pair of pods is left to tunnels
_LOOKS: Final = 500  # connections whose counts are asked for at a time
_PATIENT: Final = 30  # ticks at most between attempts at a pod whose rules have no room for us
_TAKEN: Final = (errno.EPERM, errno.EBUSY)

_Ends = tuple[SocketAddress, SocketAddress]


class Gate:
    """The gate of one pod. Raises OSError where it cannot be had.

    Attributes:
        is_open: the pod's rules ask it. They do not any more when the pod is about to leave the
            mesh, while ztunnel still serves it.
    """

    def __init__(self, keeper: "Gatekeeper", pod: LocalPod) -> None:
        self.keeper = keeper
        self.pod = pod
        self.endings: TcpEndings | None = None
        self._namespace = pod.namespace
        self._targets: dict[SocketAddress, int] = {}  # numbers of targets behind services
        self._filled: frozenset[str] = frozenset()
        self._generation = -1
        self._pause = self._next_pause = 0  # ticks without an attempt to fill the sets
        self.is_open = False
        with ExitStack() as stack:
            self._queue = PacketQueue(self._namespace, ())
            stack.callback(self._queue.close)
            self.owner = self._take_number()
            self._queue.bind(direct_rules.QUEUE)
            self.sockets = TcpSockets(self._namespace)
            stack.callback(self.sockets.close)
            self._conntrack = Conntrack(self._namespace)
            stack.callback(self._conntrack.close)
            self._end_orphans()
            stack.pop_all()
        self._engine = keeper.context.engine
        self._engine.register(self._queue.fd, self, select.EPOLLIN)

    def _take_number(self) -> int:
        for offset in range(direct_rules.OWNERS):
            number = (self.keeper.number + offset) % direct_rules.OWNERS
            try:
                self._queue.bind(direct_rules.FIRST_OWNER + number)
            except OSError as error:
                if error.errno not in _TAKEN:
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

    # ---- what is worth asking about

    def fill(self, addresses: frozenset[str]) -> None:
        """Has first packets to and from these addresses queued, and no others. Raises OSError."""
        with Nftables(self._namespace) as nftables:
            generation = nftables.generation()
            if generation != self._generation:
                # Somebody has changed the rules; perhaps they are new, and the sets empty.
                self._targets.clear()
                self._filled = frozenset(
                    direct_rules.neighbour_address(element)
                    for name in direct_rules.neighbour_sets()
                    for element in nftables.elements(direct_rules.TABLE, name)
                )
            for name in direct_rules.neighbour_sets():
                old = _elements(name, self._filled - addresses)
                new = _elements(name, addresses - self._filled)
                nftables.replace_elements(direct_rules.TABLE, name, old, new)
            self._generation = nftables.generation()
        self._filled = addresses

    def keep_filled(self, addresses: frozenset[str]) -> None:
        """The same, every second; where it is not possible connections are captured as ever."""
        if self._pause:
            self._pause -= 1
            return
        try:
            self.fill(addresses)
        except OSError as error:
            self.is_open = False
            # ENOENT: another node agent's rules, or the pod is not captured yet.
            self._next_pause = min(2 * self._next_pause + 1, _PATIENT)
            self._pause = self._next_pause
            log.debug("pod %s: nothing goes past the proxy: %s", self.pod, error)
        else:
            self.is_open = True
            self._next_pause = 0

    def _target(self, target: SocketAddress) -> int:
        """The mark that leads a packet to `target`. Raises OSError."""
        mark = self._targets.get(target)
        if mark is None:
            if len(self._targets) + 1 >= direct_rules.TARGETS:
                raise OSError(errno.ENOSPC, "no number is left for another target")
            mark = direct_rules.verdict(self.owner, len(self._targets) + 1)
            name, element = direct_rules.target_element(mark, *target)
            with Nftables(self._namespace) as nftables:
                changed = nftables.generation() != self._generation
                nftables.replace_elements(direct_rules.TABLE, name, (), (element,))
                if not changed:
                    self._generation = nftables.generation()
            self._targets[target] = mark
        return mark

    # ---- first packets

    def ready(self, events: int) -> None:
        """Judges the packets that wait."""
        for syn in self._queue.take():
            mark = 0
            try:
                mark = self._leaves(syn) if syn.hook == OUTPUT else self._arrives(syn)
            except Exception:
                log.exception("a connection of pod %s cannot go past the proxy", self.pod)
            self._queue.accept(syn, mark)

    def failed(self, error: BaseException) -> None:
        """The queue is broken: without it, first packets wait; without the sets, they need not."""
        log.error("the gate of pod %s is closed: %r", self.pod, error)
        self.keeper.leave(self.pod)

    def _leaves(self, syn: Syn) -> int:
        """The verdict on a connection that the pod begins; 0 for none."""
        keeper = self.keeper
        known = keeper.begun.get((syn.source, syn.destination))
        if known is not None:
            if known.sequence == syn.sequence:
                return known.mark  # sent again
            known.look()  # the pair of ports is used again before we heard of the end
            if not known.closed:
                return 0
        neighbour = self._neighbour(syn.source, syn.destination)
        if neighbour is None or neighbour.target.connect != neighbour.target.destination:
            return 0
        far = keeper.gates.get(neighbour.pod)
        if far is None or far is self or not far.is_open:
            return 0
        if not keeper.trusts(self.pod, neighbour.pod):
            return 0
        verdict = authorize(keeper.context.state, neighbour.workload, neighbour.attributes)
        if not verdict.allowed:
            return 0  # refused where it is captured
        target = neighbour.target.destination
        if target == syn.destination:
            mark = direct_rules.verdict(self.owner, 0)
        else:
            mark = self._target(target)
        for gate in (self, far):
            gate.watch()
        flow = DirectFlow(self, far, syn.source, syn.destination, target, syn.sequence, mark)
        keeper.add(flow)
        self._open(flow, neighbour)
        return mark

    def _arrives(self, syn: Syn) -> int:
        """The verdict on a connection that comes to the pod; 0 for none."""
        flow = self.keeper.arriving.get((syn.source, syn.destination))
        if flow is None or flow.far is not self or flow.sequence != syn.sequence:
            return 0
        flow.arrived = True
        return direct_rules.verdict(self.owner, 0)

    def _neighbour(self, client: SocketAddress, destination: SocketAddress) -> Neighbour | None:
        context, pod = self.keeper.context, self.pod
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
        return find_neighbour(context, client[0], workload, route.decision)

    def _open(self, flow: DirectFlow, neighbour: Neighbour) -> None:
        """Both sides' records."""
        context = self.keeper.context
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
        if self.endings is None:
            self.endings = TcpEndings(self._namespace)
            self._engine.register(self.endings.fd, _Ear(self), select.EPOLLIN)

    def unwatch(self) -> None:
        """No connection of the pod is under way: spare the kernel the telling."""
        endings, self.endings = self.endings, None
        if endings is not None:
            self._engine.unregister(endings.fd)
            endings.close()

    def hear(self) -> None:
        """Some sockets of the pod have ended."""
        keeper, endings = self.keeper, self.endings
        if endings is None:
            return
        for local, remote, tally in endings.take():
            flow = keeper.begun.get((local, remote))
            if flow is not None and flow.near is self:
                flow.client_ended(tally)
            flow = keeper.arriving.get((remote, local))
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
        self._empty()
        try:
            self._queue.unbind(direct_rules.QUEUE)
        except OSError as error:
            log.warning("the queue of pod %s is not given up: %s", self.pod, error)

    def close(self) -> None:
        """Leaves nothing behind in the namespace."""
        self._engine.unregister(self._queue.fd)
        self.unwatch()
        self._empty()
        self._queue.close()
        self.sockets.close()
        self._conntrack.close()

    def _empty(self) -> None:
        try:
            self.fill(frozenset())
        except OSError as error:
            log.debug("the rules of pod %s are gone already: %s", self.pod, error)


class _Ear:
    """Listens for a gate."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def ready(self, events: int) -> None:
        self._gate.hear()

    def failed(self, error: BaseException) -> None:
        log.error("pod %s does not hear of connections that end: %r", self._gate.pod, error)
        self._gate.unwatch()


class Gatekeeper:
    """All gates of a node, and the connections that have gone through them.

    Attributes:
        number: where the search for a free owner's number begins.
        begun: connections by what their client sees: its own address, and where it connects to.
        arriving: the same by what the other pod sees.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.number = random.randrange(direct_rules.OWNERS)
        self.gates: dict[LocalPod, Gate] = {}
        self.begun: dict[_Ends, DirectFlow] = {}
        self.arriving: dict[_Ends, DirectFlow] = {}
        self._distrusted: dict[tuple[str, str], float] = {}
        self._condemned: list[tuple[Gate, SocketAddress, SocketAddress]] = []
        self._addresses: frozenset[str] = frozenset()
        self._computed_for: tuple[int, int] = (-1, 0)
        self._draining = False
        self._complaints: set[str] = set()

    def add(self, flow: DirectFlow) -> None:
        """A connection is let go."""
        self.begun[flow.client, flow.destination] = flow
        self.arriving[flow.client, flow.target] = flow

    def forget(self, flow: DirectFlow) -> None:
        """It has ended."""
        for table, key in (
            (self.begun, (flow.client, flow.destination)),
            (self.arriving, (flow.client, flow.target)),
        ):
            if table.get(key) is flow:
                del table[key]

    # ---- trust

    def trusts(self, near: LocalPod, far: LocalPod) -> bool:
        """Whether first packets between these two are known to get lost."""
        until = self._distrusted.get((near.uid, far.uid))
        return until is None or until < time.monotonic()

    def distrust(self, flow: DirectFlow) -> None:
        """Leaves what goes between two pods to tunnels for a while."""
        near, far = flow.near.pod, flow.far.pod
        self._distrusted[near.uid, far.uid] = time.monotonic() + _DISTRUST
        log.warning(
            "connections from pod %s to pod %s do not arrive past the proxies; tunnels serve them"
            " for %d minutes", near, far, _DISTRUST / 60,
        )  # fmt: skip

    def condemn(self, gate: Gate, local: SocketAddress, remote: SocketAddress) -> None:
        """A socket that could not be aborted yet."""
        self._condemned.append((gate, local, remote))

    # ---- once a second

    def tick(self) -> None:
        """Opens gates, keeps what they ask about up to date, and looks after connections."""
        if not self._draining:
            for pod in self.context.local_pods.values():
                if pod not in self.gates and pod.namespace is not None:
                    self._open(pod)
            addresses = self._worth_asking()
            for gate in self.gates.values():
                gate.keep_filled(addresses)
        self._execute()
        self._look_after()

    def _open(self, pod: LocalPod) -> None:
        try:
            self.gates[pod] = Gate(self, pod)
        except OSError as error:
            # EPERM: another ztunnel, which is about to leave, still has the queue.
            if error.errno not in _TAKEN and pod.uid not in self._complaints:
                self._complaints.add(pod.uid)
                log.warning("pod %s has no gate, its connections are captured: %s", pod, error)

    def _worth_asking(self) -> frozenset[str]:
        """Addresses of pods here, and of services all of whose endpoints are here.

        Where some are elsewhere, who asked and was told "elsewhere" would have to choose again.
        """
        state = self.context.state
        now = (state.generation, len(self.gates))
        if self._computed_for == now:
            return self._addresses
        self._computed_for = now
        here = {}
        for pod in self.gates:
            workload = pod.workload()
            if (
                workload is not None
                and workload.tunnel_protocol is TunnelProtocol.HBONE
                and workload.waypoint is None
                and self.context.may_join(workload)
            ):
                here[workload.uid] = workload
        found: set[str] = set()
        if len(here) > 1:
            for workload in here.values():
                found.update(workload.addresses)
            for key in {key for workload in here.values() for key in workload.services}:
                service = state.service(key)
                if service is None or service.waypoints():
                    continue
                if all(endpoint.uid in here for endpoint in state.endpoints(key)):
                    found.update(vip.address for vip in service.vips)
        self._addresses = frozenset(found)
        return self._addresses

    def _execute(self) -> None:
        waiting, self._condemned = self._condemned, []
        for gate, local, remote in waiting:
            if self.gates.get(gate.pod) is gate:
                try:
                    gate.sockets.abort(local, remote)
                except OSError:
                    self.condemn(gate, local, remote)

    def _look_after(self) -> None:
        """Asks for counts, in turns; finds ends that nobody told of."""
        busy: set[Gate] = set()
        flows = list(self.begun.values())
        for number, flow in enumerate(flows):
            busy.update((flow.near, flow.far))
            half_over = flow.near_end is not None or flow.far_end is not None
            if number >= _LOOKS and not half_over and flow.arrived:
                continue
            try:
                flow.look()
            except OSError as error:
                log.debug("a connection cannot be looked at: %s", error)
            if not flow.closed:
                # To the end of the queue, so that all have their turn.
                self.begun[flow.client, flow.destination] = self.begun.pop(
                    (flow.client, flow.destination)
                )
        for gate in self.gates.values():
            if gate not in busy:
                gate.unwatch()

    # ---- life

    def leave(self, pod: LocalPod) -> None:
        """The pod is no longer served; its connections have been ended."""
        gate = self.gates.pop(pod, None)
        if gate is not None:
            gate.close()

    def drain(self) -> None:
        """Leaves new connections to whoever comes next."""
        self._draining = True
        for gate in self.gates.values():
            gate.shut()

    def close(self) -> None:
        """Gives everything back. Connections must have been ended before."""
        for pod in list(self.gates):
            self.leave(pod)


def leave_captured(pod: LocalPod) -> None:
    """Where there are no gates: undoes what a predecessor that had them may have left, or first
    packets would wait for an answer for ever."""
    try:
        with Nftables(pod.namespace) as nftables:
            for name in direct_rules.neighbour_sets():
                found = nftables.elements(direct_rules.TABLE, name)
                nftables.replace_elements(direct_rules.TABLE, name, found, ())
    except OSError as error:
        log.debug("pod %s has no rules for first packets: %s", pod, error)


def _elements(name: str, addresses: frozenset[str]) -> list[Element]:
    found = (direct_rules.neighbour_element(address) for address in sorted(addresses))
    return [element for where, element in found if where == name]
