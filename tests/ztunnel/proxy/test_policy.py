"""Who may connect: at the door, and later, when policies change under live connections."""

import dataclasses

import pytest
import trio

from tests.support.pair import ECHO, Pair
from tests.support.policies import DENY_CLIENT, STRICT, policy
from tests.support.proxies import NAMESPACE
from tests.support.sockets import connect, ends, receive_all, receive_exactly
from ztunnel.mesh.policy import (
    Match,
    PolicyAction,
    PolicyScope,
    StringMatch,
    StringMatchKind,
)

pytestmark = pytest.mark.root


async def test_a_denied_client_is_refused_and_the_log_says_by_which_policy(pair: Pair) -> None:
    pair.mesh.apply(DENY_CLIENT)
    assert await ends(await pair.dial())
    line = await pair.mesh.line('direction="inbound"', "error=")
    assert f"denied by policy {NAMESPACE}/deny-client (rule 1)" in line
    assert 'response_flags="DENY"' in line
    # The source learns that it was refused, not why.
    assert "401" in await pair.mesh.line('direction="outbound"', "error=")


async def test_allow_policies_admit_only_whom_they_name(pair: Pair) -> None:
    other = StringMatch(StringMatchKind.EXACT, "cluster.local/ns/shop/sa/other")
    pair.mesh.apply(policy("only-other", PolicyAction.ALLOW, Match(principals=(other,))))
    assert await ends(await pair.dial())
    assert "shop/only-other" in await pair.mesh.line('direction="inbound"', "error=")
    mine = StringMatch(StringMatchKind.EXACT, "cluster.local/ns/shop/sa/client")
    pair.mesh.apply(policy("also-client", PolicyAction.ALLOW, Match(principals=(mine,))))
    stream = await pair.dial()
    await stream.send_all(b"in")
    assert await receive_exactly(stream, 2) == b"in"
    await stream.aclose()
    assert "allowed by policy shop/also-client" in await pair.mesh.line(
        'direction="inbound"', "bytes_recv=2"
    )


async def test_a_new_policy_ends_the_live_connections_it_forbids(pair: Pair) -> None:
    live = await pair.dial()
    await live.send_all(b"x")
    await receive_exactly(live, 1)
    pair.mesh.apply(DENY_CLIENT)
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(30):
        await receive_all(live)
    line = await pair.mesh.line('direction="inbound"', "connection closed due to policy change")
    assert f"denied by policy {NAMESPACE}/deny-client (rule 1)" in line
    assert 'closed_by="proxy"' in line


async def test_a_policy_attached_to_the_workload_ends_live_connections(pair: Pair) -> None:
    selected = dataclasses.replace(
        DENY_CLIENT, name="selected", scope=PolicyScope.WORKLOAD_SELECTOR
    )
    pair.mesh.apply(selected)
    live = await pair.dial()
    await live.send_all(b"x")
    await receive_exactly(live, 1)
    # Not the policy changes, but the workload's own list of policies.
    pair.mesh.apply(
        dataclasses.replace(pair.server, authorization_policies=(f"{NAMESPACE}/selected",))
    )
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(30):
        await receive_all(live)


async def test_an_unrelated_policy_leaves_connections_alone(pair: Pair) -> None:
    live = await pair.dial()
    await live.send_all(b"x")
    await receive_exactly(live, 1)
    pair.mesh.apply(dataclasses.replace(DENY_CLIENT, namespace="elsewhere"), STRICT)
    await live.send_all(b"y")
    assert await receive_exactly(live, 1) == b"y"


async def outsider_refused(pair: Pair) -> bool:
    """Tries from the node, where nothing is captured."""
    network = pair.room.node(1).network
    with trio.fail_after(30):
        stream = await connect(network, pair.room.ip("server"), ECHO)
        async with stream:
            try:
                await stream.send_all(b"plain")
                return await receive_exactly(stream, 5) != b"plain"
            except (EOFError, trio.BrokenResourceError):
                return True


async def test_plaintext_is_let_in_unless_a_policy_demands_an_identity(pair: Pair) -> None:
    assert not await outsider_refused(pair)
    line = await pair.mesh.line('direction="inbound"', 'path="copy"')
    assert "src.identity" not in line
    pair.mesh.apply(STRICT)
    assert await outsider_refused(pair)
    assert "shop/strict" in await pair.mesh.line('direction="inbound"', "DENY")
    stream = await pair.dial()
    await stream.send_all(b"mtls")
    assert await receive_exactly(stream, 4) == b"mtls"


async def test_a_port_is_judged_as_the_pod_serves_it(pair: Pair) -> None:
    pair.mesh.apply(
        policy("no-7001", PolicyAction.DENY, Match(destination_ports=(7001,))),
    )
    pair.listen(7001)
    assert await ends(await pair.dial(7001))
    stream = await pair.dial()
    await stream.send_all(b"x")
    assert await receive_exactly(stream, 1) == b"x"


async def test_dry_run_denies_nothing(pair: Pair) -> None:
    pair.mesh.apply(dataclasses.replace(DENY_CLIENT, dry_run=True))
    stream = await pair.dial()
    await stream.send_all(b"x")
    assert await receive_exactly(stream, 1) == b"x"


async def test_a_workload_that_leaves_loses_its_connections(pair: Pair) -> None:
    live = await pair.dial()
    await live.send_all(b"x")
    await receive_exactly(live, 1)
    pair.mesh.apply(removed=[pair.server.uid])
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(30):
        await receive_all(live)
