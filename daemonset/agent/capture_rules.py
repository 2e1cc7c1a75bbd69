"""The rules that capture a pod's traffic, as a value. What each is for stands in its comment.

One table of our own in the pod's namespace. New TCP connections that a process of the pod makes go
to ztunnel's port 15001, those that come from outside to 15006, DNS to 15053. What ztunnel itself
sends carries a mark and is left alone. Port 15008 is not redirected: ztunnel listens on it, there.

Two things differ from Istio's rules of the same purpose. Nothing depends on a mark that a process
of the pod could set for its own good: 0x111 counts on connections, not on packets. And ztunnel's
own mark is taken off its packets before they leave, so that a pod that may open raw sockets does
not find it by listening.
"""

import socket
from dataclasses import dataclass, replace

from ztunnel.kernel import direct_rules
from ztunnel.linux import nft_expressions as nft
from ztunnel.linux.nft_tables import Chain, Rule, Set, Table
from ztunnel.linux.routing import MarkedIsLocal

TABLE = direct_rules.TABLE
STOP_TABLE = "ambientd-stop"
JOINING_TABLE = "ambientd-joining"
"""Empty. As long as it is there, connections from before the capture have not been ended yet: an
agent that is killed at that moment leaves it to the next one."""

OUTBOUND_PORT = 15001
INBOUND_PORT = 15006
HBONE_PORT = 15008
DNS_PORT = 15053

ISTIO_MARK = 0x539
ISTIO_MASK = 0xFFF
ANSWERS = MarkedIsLocal()
"""Answers of the application to connections that ztunnel made in a client's name."""

PROBE_V4 = "169.254.7.127"
PROBE_V6 = "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"
"""Where probes of the node come from; the node's own rules see to that (host.py)."""

_RAW, _MANGLE, _DNAT, _LAST = -300, -150, -100, 300
_PROXY_ZONE = 1
_TCP = nft.protocol(socket.IPPROTO_TCP)
_UDP = nft.protocol(socket.IPPROTO_UDP)


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """What to capture. `mark` under `mask` is what ztunnel sets on its sockets (PACKET_MARK).

    `inbound` false is Istio's ingress mode: only what the pod sends, and HBONE, which needs no
    redirection. `reroute_interfaces`: guests (virtual machines) live behind these interfaces, and
    what comes in through them counts as sent by the pod. `queueing` says how first packets to pods
    of the same node are queued for ztunnel (kernel/direct_rules.py); None where they never are.
    """

    mark: int
    mask: int = 0xFFFFFFFF
    dns: bool = True
    inbound: bool = True
    reroute_interfaces: tuple[str, ...] = ()
    queueing: direct_rules.Queueing | None = None

    @classmethod
    def istio(cls) -> "CaptureOptions":
        """Istio's own mark, for its ztunnel below this agent."""
        return cls(ISTIO_MARK, ISTIO_MASK)


def capture_table(options: CaptureOptions, *, redirecting: bool = True) -> Table:
    """The whole rule set. With `redirecting` false it serves the connections that there are, and
    takes in no new ones: for the moment in which a pod leaves the mesh."""
    chains = (*_mark_chains(options), *_zone_chains(options))
    outbound = _outbound_rules(options) if redirecting else ()
    inbound = _inbound_rules(options) if redirecting else ()
    sets: tuple[Set, ...] = ()
    # Who is behind a pod's own guests is not for ztunnel to know.
    if options.queueing is not None and not options.reroute_interfaces:
        direct = direct_rules.direct_chains(
            options.mark, options.mask, options.queueing, inbound=options.inbound
        )
        if redirecting:
            chains += direct
            sets = direct_rules.direct_sets()
            outbound = direct_rules.outbound_rules() + outbound
            if options.inbound:
                inbound = direct_rules.inbound_rules() + inbound
        else:
            # Without a hook of these the kernel would drop first packets that wait in the queue.
            chains += tuple(replace(chain, rules=()) for chain in direct if chain.hook)
    # Both stay in place when they are empty: without them the kernel would stop translating the
    # packets of connections that have been redirected before.
    chains += (
        Chain("outbound", outbound, "output", "nat", _DNAT),
        Chain("inbound", inbound, "prerouting", "nat", _DNAT),
    )
    return Table(TABLE, chains, sets)


def stop_table() -> Table:
    """Nothing gets in or out of the namespace; its loopback goes on."""
    outward = Rule(
        (*nft.output_interface("lo", negated=True), nft.counter(), nft.drop()),
        "capture failed: nothing leaves",
    )
    inward = Rule(
        (*nft.input_interface("lo", negated=True), nft.counter(), nft.drop()),
        "capture failed: nothing comes in",
    )
    return Table(
        STOP_TABLE,
        (
            Chain("outward", (outward,), "output", "filter", _RAW - 1),
            Chain("inward", (inward,), "prerouting", "filter", _RAW - 1),
        ),
    )


def _of_proxy(options: CaptureOptions, *, negated: bool = False) -> tuple[nft.Expression, ...]:
    return nft.mark(options.mark, options.mask, negated=negated)


def _mark_chains(options: CaptureOptions) -> tuple[Chain, ...]:
    begun = Rule(
        (
            *_TCP,
            *_of_proxy(options),
            *nft.output_interface("lo"),
            *nft.connection_direction(reply=False),
            nft.counter(),
            *nft.set_connection_mark(ANSWERS.mark, ANSWERS.mask),
        ),
        "ztunnel connects to the application: remember the connection",
    )
    answered = Rule(
        (
            *nft.connection_direction(reply=True),
            *nft.connection_mark(ANSWERS.mark, ANSWERS.mask),
            nft.counter(),
            *nft.mark_from_connection(),
        ),
        "the application answers ztunnel: deliver it here, whoever it is addressed to",
    )
    hidden = Rule(
        (*_of_proxy(options), nft.counter(), *nft.set_mark(0)),
        "nobody gets to see the mark of ztunnel",
    )
    return (
        Chain("answers", (begun, answered), "output", "route", _MANGLE),
        Chain("hide-mark", (hidden,), "postrouting", "filter", _LAST),
    )


def _zone_chains(options: CaptureOptions) -> tuple[Chain, ...]:
    out: list[Rule] = [
        Rule(
            (
                *_of_proxy(options),
                *_TCP,
                *nft.output_interface("lo"),
                nft.counter(),
                *nft.set_connection_zone(_PROXY_ZONE, original_only=True),
            ),
            "ztunnel connects in a client's name: not mistaken for a connection of that client",
        )
    ]
    if not options.dns:
        return (Chain("zone-out", tuple(out), "output", "filter", _RAW),)
    out.append(
        Rule(
            (
                *_UDP,
                *_of_proxy(options),
                *nft.destination_port(53),
                nft.counter(),
                *nft.set_connection_zone(_PROXY_ZONE),
            ),
            "questions of ztunnel itself: tracked apart from the captured ones",
        )
    )
    answered = Rule(
        (
            *_UDP,
            *nft.input_interface("lo", negated=True),
            *nft.source_port(53),
            nft.counter(),
            *nft.set_connection_zone(_PROXY_ZONE),
        ),
        "answers to ztunnel's own questions",
    )
    return (
        Chain("zone-out", tuple(out), "output", "filter", _RAW),
        Chain("zone-in", (answered,), "prerouting", "filter", _RAW),
    )


def _outbound_rules(options: CaptureOptions) -> tuple[Rule, ...]:
    rules: list[Rule] = []
    if options.dns:
        rules += [
            Rule(
                (
                    *nft.output_interface("lo", negated=True),
                    *_UDP,
                    *nft.destination_port(53),
                    *_of_proxy(options, negated=True),
                    nft.counter(),
                    *nft.redirect(DNS_PORT),
                ),
                "DNS over UDP",
            ),
            *(
                Rule(
                    (
                        *nft.destination(loopback, negated=True),
                        *_TCP,
                        *nft.destination_port(53),
                        *_of_proxy(options, negated=True),
                        nft.counter(),
                        *nft.redirect(DNS_PORT),
                    ),
                    "DNS over TCP",
                )
                for loopback in ("127.0.0.1", "::1")
            ),
        ]
    rules += [
        Rule(
            (*nft.output_interface("lo"), nft.counter(), nft.accept()),
            "the pod talks to itself, by whichever of its addresses",
        ),
        Rule(
            (
                *_TCP,
                *_of_proxy(options, negated=True),
                nft.counter(),
                *nft.redirect(OUTBOUND_PORT),
            ),
            "what the pod sends",
        ),
    ]
    return tuple(rules)


def _inbound_rules(options: CaptureOptions) -> tuple[Rule, ...]:
    rules: list[Rule] = []
    for name in options.reroute_interfaces:
        rules += [
            Rule(
                (
                    *nft.input_interface(name),
                    *_TCP,
                    nft.counter(),
                    *nft.redirect(OUTBOUND_PORT),
                ),
                f"what a guest behind {name} sends",
            ),
            Rule(
                (*nft.input_interface(name), nft.counter(), nft.accept()),
                f"the rest from {name}",
            ),
        ]
    if options.inbound:
        rules += [
            Rule(
                (*_TCP, *nft.source(address), nft.counter(), nft.accept()),
                "probes of this node",
            )
            for address in (PROBE_V4, PROBE_V6)
        ]
        rules.append(
            Rule(
                (
                    *nft.input_interface("lo", negated=True),
                    *_TCP,
                    *nft.destination_port(HBONE_PORT, negated=True),
                    nft.counter(),
                    *nft.redirect(INBOUND_PORT),
                ),
                "what comes in from outside",
            )
        )
    return tuple(rules)
