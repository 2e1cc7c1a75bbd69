"""Every field of a policy and its negation, at both entries of a pod: with an identity through
the tunnel, and without one in plaintext. And what becomes of live connections."""

import dataclasses
import logging

import pytest
import trio

from tests.support.pair import ECHO, Pair
from tests.support.proxies import NAMESPACE
from tests.support.sockets import connect, receive_all, receive_exactly
from ztunnel.mesh.address import parse_network
from ztunnel.mesh.policy import (
    Authorization,
    Match,
    PolicyAction,
    PolicyScope,
    ServiceAccountMatch,
    StringMatch,
    StringMatchKind,
)

pytestmark = pytest.mark.root

TUNNEL, PLAIN = "tunnel", "plaintext"


def text(kind: StringMatchKind, value: str = "") -> tuple[StringMatch, ...]:
    return (StringMatch(kind, value),)


def fields(pair: Pair) -> dict[str, tuple[Match, set[str]]]:
    """Name -> (the match, at which entries it applies)."""
    client = (parse_network(f"{pair.room.ip('client')}/32"),)
    server = (parse_network(f"{pair.room.ip('server')}/32"),)
    account = (ServiceAccountMatch(NAMESPACE, "client"),)
    exact, prefix, suffix, presence = (
        text(StringMatchKind.EXACT, NAMESPACE),
        text(StringMatchKind.PREFIX, "cluster.local/ns/"),
        text(StringMatchKind.SUFFIX, "/sa/client"),
        text(StringMatchKind.PRESENCE),
    )
    both, neither = {TUNNEL, PLAIN}, set[str]()
    return {
        "namespaces": (Match(namespaces=exact), {TUNNEL}),
        "not_namespaces": (Match(not_namespaces=exact), {PLAIN}),
        "principals": (Match(principals=prefix), {TUNNEL}),
        "principals by suffix": (Match(principals=suffix), {TUNNEL}),
        "not_principals": (Match(not_principals=presence), {PLAIN}),
        "service_accounts": (Match(service_accounts=account), {TUNNEL}),
        "not_service_accounts": (Match(not_service_accounts=account), {PLAIN}),
        "source_ips": (Match(source_ips=client), {TUNNEL}),
        "not_source_ips": (Match(not_source_ips=client), {PLAIN}),
        "destination_ips": (Match(destination_ips=server), both),
        "not_destination_ips": (Match(not_destination_ips=server), neither),
        "destination_ports": (Match(destination_ports=(ECHO,)), both),
        "not_destination_ports": (Match(not_destination_ports=(ECHO,)), neither),
        "two fields": (Match(destination_ports=(ECHO,), principals=presence), {TUNNEL}),
        "empty": (Match(), neither),
    }


def policy(name: str, action: PolicyAction, match: Match) -> Authorization:
    return Authorization(name, NAMESPACE, PolicyScope.NAMESPACE, action, rules=(((match,),),))


async def plain(pair: Pair) -> trio.SocketStream:
    """From a node, where nothing is captured."""
    return await connect(pair.room.node(1).network, pair.room.ip("server"), ECHO)


async def admitted(pair: Pair) -> set[str]:
    """The entries at which a byte comes back."""
    found = set()
    for entry in (TUNNEL, PLAIN):
        stream = await (pair.dial() if entry == TUNNEL else plain(pair))
        with trio.fail_after(30):
            async with stream:
                try:
                    await stream.send_all(b"x")
                    if await receive_exactly(stream, 1) == b"x":
                        found.add(entry)
                except (EOFError, trio.BrokenResourceError):
                    continue
    return found


async def test_each_field_in_deny_and_in_allow(pair: Pair) -> None:
    everywhere = {TUNNEL, PLAIN}
    assert await admitted(pair) == everywhere
    for name, (match, applies) in fields(pair).items():
        denying = policy("p", PolicyAction.DENY, match)
        pair.mesh.apply(denying)
        assert await admitted(pair) == everywhere - applies, f"DENY {name}"
        pair.mesh.apply(policy("p", PolicyAction.ALLOW, match))
        assert await admitted(pair) == applies, f"ALLOW {name}"


async def test_refusals_name_what_to_change(pair: Pair) -> None:
    """A newcomer reads what was required, what was there instead, and where it says so."""
    only = text(StringMatchKind.EXACT, f"cluster.local/ns/{NAMESPACE}/sa/web")
    pair.mesh.apply(policy("only-web", PolicyAction.ALLOW, Match(principals=only)))
    assert await admitted(pair) == set()
    tunnelled = await pair.mesh.line('direction="inbound"', "src.identity", "DENY")
    assert f"none of the ALLOW policies of {NAMESPACE}/server (shop/only-web) applies" in tunnelled
    assert (
        "nearest: shop/only-web (rule 1): the peer's identity is cluster.local/ns/shop/sa/client,"
        " not cluster.local/ns/shop/sa/web" in tunnelled
    )
    in_plain = await pair.mesh.line('direction="inbound"', "plaintext to the pod", "DENY")
    assert "the peer has no identity, not cluster.local/ns/shop/sa/web" in in_plain


async def live(pair: Pair, entry: str) -> trio.SocketStream:
    stream = await (pair.dial() if entry == TUNNEL else plain(pair))
    await stream.send_all(b"x")
    with trio.fail_after(30):
        await receive_exactly(stream, 1)
    return stream


async def is_cut(stream: trio.SocketStream) -> bool:
    """Whether it ends by itself, soon."""
    try:
        with trio.move_on_after(30):
            await receive_all(stream)
    except trio.BrokenResourceError:
        return True
    return False


@pytest.mark.parametrize("entry", [TUNNEL, PLAIN])
async def test_live_connections_are_judged_again(pair: Pair, entry: str) -> None:
    stream = await live(pair, entry)
    # A policy on another port touches it not, the one on its own ends it.
    pair.mesh.apply(policy("p", PolicyAction.DENY, Match(destination_ports=(ECHO + 1,))))
    await stream.send_all(b"y")
    with trio.fail_after(30):
        assert await receive_exactly(stream, 1) == b"y"
    pair.mesh.apply(policy("p", PolicyAction.DENY, Match(destination_ports=(ECHO,))))
    assert await is_cut(stream)
    await stream.aclose()
    line = await pair.mesh.line('direction="inbound"', "connection closed due to policy change")
    assert "denied by policy shop/p (rule 1)" in line
    assert 'closed_by="proxy"' in line
    assert "bytes_sent=2 bytes_recv=2" in line
    assert 'response_flags="DENY"' in line
    assert pair.mesh.counters.counter("ztunnel_revoked_connections", "policy").value == 1


@pytest.mark.parametrize("entry", [TUNNEL, PLAIN])
async def test_a_deleted_allow_ends_what_only_it_let_in(pair: Pair, entry: str) -> None:
    everybody = policy("all", PolicyAction.ALLOW, Match(destination_ports=(ECHO,)))
    nobody = policy("none", PolicyAction.ALLOW, Match(destination_ports=(1,)))
    pair.mesh.apply(everybody, nobody)
    stream = await live(pair, entry)
    pair.mesh.apply(removed_policies=[everybody.key])
    assert await is_cut(stream)
    await stream.aclose()


@pytest.mark.parametrize("entry", [TUNNEL, PLAIN])
async def test_a_workload_that_names_another_policy_is_judged_again(pair: Pair, entry: str) -> None:
    """Neither a policy nor an address changes, only the list of the workload."""
    named = dataclasses.replace(
        policy("named", PolicyAction.DENY, Match(destination_ports=(ECHO,))),
        scope=PolicyScope.WORKLOAD_SELECTOR,
    )
    pair.mesh.apply(named)
    stream = await live(pair, entry)
    pair.mesh.apply(dataclasses.replace(pair.server, authorization_policies=(named.key,)))
    assert await is_cut(stream)
    await stream.aclose()


@pytest.mark.parametrize("entry", [TUNNEL, PLAIN])
async def test_dry_run_tells_and_counts_and_lets_in(
    pair: Pair, entry: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "ztunnel.proxy")
    tried = policy("tried", PolicyAction.DENY, Match(destination_ports=(ECHO,)))
    pair.mesh.apply(dataclasses.replace(tried, dry_run=True))
    stream = await live(pair, entry)
    await stream.aclose()
    said = next(line for line in caplog.messages if "dry run" in line)
    assert said.startswith("dry run: policy shop/tried (rule 1) would deny")
    assert f"to port {ECHO}" in said
    counted = pair.mesh.counters.counter
    assert counted("ztunnel_authorization_decisions", "shop/tried", "deny", "dry_run").value == 1
    assert counted("ztunnel_authorization_decisions", "none", "allow", "enforced").value == 1


async def test_what_cannot_be_judged_again_is_ended(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no verdict")

    stream = await live(pair, PLAIN)
    monkeypatch.setattr("ztunnel.proxy.admit.authorize", broken)
    pair.mesh.apply(policy("p", PolicyAction.DENY, Match(destination_ports=(1,))))
    assert await is_cut(stream)
    await stream.aclose()
    assert "could not be judged" in await pair.mesh.line('direction="inbound"', "DENY")


async def test_a_connection_that_is_still_being_made_is_judged_again_too(pair: Pair) -> None:
    """The application's queue is full, so that the connect to it hangs."""
    network = pair.room.pod("server").network
    with network.socket(trio.socket.AF_INET, trio.socket.SOCK_STREAM) as full:
        full.bind(("0.0.0.0", 7002))
        full.listen(0)
        fillers = []
        with trio.move_on_after(1):
            while True:
                # From inside, where loopback is not captured.
                fillers.append(await connect(network, "127.0.0.1", 7002))
        stream = await connect(pair.room.node(1).network, pair.room.ip("server"), 7002)
        async with stream:
            with trio.fail_after(30):
                while not len(pair.mesh.context.registry):
                    await trio.sleep(0.01)
            pair.mesh.apply(policy("p", PolicyAction.DENY, Match(destination_ports=(7002,))))
            with trio.fail_after(30):
                assert await stream.receive_some(1) == b""
        line = await pair.mesh.line('direction="inbound"', "policy change")
        assert "denied by policy shop/p (rule 1)" in line
        for filler in fillers:
            filler.socket.close()
    assert len(pair.mesh.context.registry) == 0
