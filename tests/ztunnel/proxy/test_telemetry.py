"""One line for each connection and the same in numbers, for each way that one can end."""

import dataclasses
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio

from tests.support.lab import lab
from tests.support.pair import ECHO, HOST, VIP, Pair
from tests.support.proxies import NAMESPACE, proxies, service
from tests.support.sockets import abort, connect, listen, receive_all, receive_exactly, serve_echo
from ztunnel.mesh.identity import Identity
from ztunnel.mesh.policy import Authorization, Match, PolicyAction, PolicyScope
from ztunnel.mesh.workload import Locality
from ztunnel.telemetry.labels import TCP_LABELS, TcpSeries

pytestmark = pytest.mark.root

SOURCE = "spiffe://cluster.local/ns/shop/sa/client"
DESTINATION = "spiffe://cluster.local/ns/shop/sa/server"
Line = dict[str, Any]


class Told:
    """What the proxies of a pair say."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.mesh = pair.mesh

    @property
    def lines(self) -> list[Line]:
        return [json.loads(line) for line in self.mesh.lines]

    async def line(self, wanted: Callable[[Line], bool]) -> Line:
        """The first one, waited for."""
        with trio.fail_after(30):
            while True:
                for line in self.lines:
                    if wanted(line):
                        return line
                await trio.sleep(0.01)

    async def both(self) -> tuple[Line, Line]:
        """The outbound and the inbound line of the only connection there was."""
        out = await self.line(lambda line: line["direction"] == "outbound")
        into = await self.line(lambda line: line["direction"] == "inbound")
        assert len(self.lines) == 2
        return out, into

    def series(self, reporter: str, **labels: str) -> TcpSeries:
        """The only series with these labels."""
        self.mesh.context.registry.count()
        wanted = {"reporter": reporter, **labels}.items()
        (found,) = (
            one
            for one in self.mesh.counters.table.series.values()
            if wanted <= dict(zip(TCP_LABELS, one.labels, strict=True)).items()
        )
        return found


def numbers(series: TcpSeries) -> tuple[int, ...]:
    """Opened, closed, failed, received, sent."""
    return series.opened, series.closed, series.failed, series.received, series.sent


@pytest.fixture
async def told() -> AsyncIterator[Told]:
    with lab(nodes=2, pods={"client": 1, "server": 2}) as room:
        async with (
            proxies(room, LOG_FORMAT="json") as mesh,
            trio.open_nursery() as nursery,
        ):
            server_place = Locality("east", "b", "")
            client = mesh.enroll("client", canonical_revision="v1", cluster_id="here")
            server = mesh.enroll(
                "server",
                services={f"{NAMESPACE}/{HOST}": {80: ECHO}},
                locality=server_place,
                cluster_id="here",
            )
            mesh.apply(service("echo", VIP, {80: ECHO}))
            nursery.start_soon(serve_echo, listen(room.pod("server").network, ECHO))
            pair = Pair(room, mesh, client, server)
            yield Told(pair)
            pair.close()
            nursery.cancel_scope.cancel()


async def talk(stream: trio.SocketStream, count: int = 100_000) -> None:
    """So many bytes there and back, then the end."""

    async def send() -> None:
        await stream.send_all(bytes(count))
        await stream.send_eof()

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            assert len(await receive_all(stream)) == count
    await stream.aclose()


async def ends(stream: trio.SocketStream) -> None:
    """The proxy ends it."""
    with trio.fail_after(30):
        try:
            await stream.send_all(b"x")
            assert await receive_all(stream) == b""
        except trio.BrokenResourceError:
            pass  # it is a reset where something was sent
        finally:
            stream.socket.close()


def expected(reporter: str, flags: str = "-") -> dict[str, str]:
    return {
        "reporter": reporter,
        "source_workload": "client",
        "source_canonical_service": "client",
        "source_canonical_revision": "v1",
        "source_workload_namespace": NAMESPACE,
        "source_principal": SOURCE,
        "source_app": "client",
        "source_version": "v1",
        "source_cluster": "here",
        "destination_service": HOST,
        "destination_service_namespace": NAMESPACE,
        "destination_service_name": "echo",
        "destination_workload": "server",
        "destination_canonical_service": "server",
        "destination_canonical_revision": "unknown",
        "destination_workload_namespace": NAMESPACE,
        "destination_principal": DESTINATION,
        "destination_app": "server",
        "destination_version": "unknown",
        "destination_cluster": "here",
        "request_protocol": "tcp",
        "response_flags": flags,
        "connection_security_policy": "mutual_tls",
        "source_region": "unknown",
        "source_zone": "unknown",
        "destination_region": "east",
        "destination_zone": "b",
    }


async def test_success_in_both_reporters_with_exact_bytes(told: Told) -> None:
    await talk(await told.pair.dial(80, VIP))
    out, into = await told.both()
    server, client = told.pair.room.ip("server"), told.pair.room.ip("client")
    common = {
        "level": "info", "scope": "access", "message": "connection complete",
        "src.workload": "client", "src.namespace": NAMESPACE, "src.identity": SOURCE,
        "src.cluster": "here", "dst.hbone_addr": f"{server}:{ECHO}", "dst.service": HOST,
        "dst.workload": "server", "dst.namespace": NAMESPACE, "dst.identity": DESTINATION,
        "dst.cluster": "here", "bytes_sent": 100_000, "bytes_recv": 100_000,
        "closed_by": "client", "path": "tls", "dst.addr": f"{server}:15008",
    }  # fmt: skip
    for line, direction in ((out, "outbound"), (into, "inbound")):
        assert common.items() <= line.items()
        assert line["direction"] == direction
        assert line["src.addr"].startswith(f"{client}:")
        assert line["duration"].endswith("ms")
        assert "error" not in line
        assert "response_flags" not in line
    assert out["decision"] == "tunnel to workload shop/server, chosen for service shop/echo"
    assert into["verdict"] == "allowed: no policy applies to the workload"
    for reporter in ("source", "destination"):
        series = told.series(reporter)
        assert dict(zip(TCP_LABELS, series.labels, strict=True)) == expected(reporter)
        assert numbers(series) == (1, 1, 0, 100_000, 100_000)


async def test_bytes_are_counted_while_a_connection_lives(told: Told) -> None:
    stream = await told.pair.dial(80, VIP)
    await stream.send_all(b"12345")
    await receive_exactly(stream, 5)
    assert numbers(told.series("source")) == (1, 0, 0, 5, 5)
    assert told.mesh.context.registry.open == (1, 1)
    moved = told.mesh.counters.counter("ztunnel_relay_bytes", "tls")
    assert moved.value == 20  # both ends, both directions
    await stream.aclose()
    await told.both()
    assert numbers(told.series("source")) == (1, 1, 0, 5, 5)
    assert moved.value == 20
    assert told.mesh.counters.counter("ztunnel_relay_connections", "tls").value == 2
    assert told.mesh.context.registry.open == (0, 0)


async def test_a_refusal_by_policy(told: Told) -> None:
    rules = (((Match(destination_ports=(ECHO,)),),),)
    told.mesh.apply(
        Authorization("no", NAMESPACE, PolicyScope.NAMESPACE, PolicyAction.DENY, rules=rules)
    )
    await ends(await told.pair.dial(80, VIP))
    out, into = await told.both()
    assert into["verdict"].startswith("denied by policy shop/no (rule 1)")
    assert into["error"] == into["verdict"]
    assert (into["level"], into["response_flags"]) == ("error", "DENY")
    assert into["src.identity"] == SOURCE
    # The source hears the status and nothing of the policy.
    assert (out["level"], out["response_flags"]) == ("error", "CONNECT")
    assert "401" in out["error"]
    assert "shop/no" not in out["error"]
    for reporter, flags in (("source", "CONNECT"), ("destination", "DENY")):
        failed = told.series(reporter, response_flags=flags)
        assert dict(zip(TCP_LABELS, failed.labels, strict=True)) == expected(reporter, flags)
        assert numbers(failed) == (0, 1, 1, 0, 0)
        assert numbers(told.series(reporter, response_flags="-")) == (1, 0, 0, 0, 0)


async def test_an_application_that_does_not_listen(told: Told) -> None:
    await ends(await told.pair.dial(7999))
    out, into = await told.both()
    server = told.pair.room.ip("server")
    assert into["error"] == f"connect to {server}:7999: Connection refused"
    assert into["response_flags"] == out["response_flags"] == "CONNECT"
    assert "503" in out["error"]
    assert "Connection refused" in out["error"]
    assert into["verdict"] == "allowed: no policy applies to the workload"


async def test_a_failure_of_tls(told: Told) -> None:
    """Said by both: who was expected, and that the peer went away."""
    other = told.mesh.authority.workload(Identity("cluster.local", NAMESPACE, "impostor"))
    told.mesh.certificates.received(dataclasses.replace(other, identity=told.pair.server.identity))
    await ends(await told.pair.dial(80, VIP))
    out, into = await told.both()
    assert out["response_flags"] == "TLS_FAILURE"
    assert f"expected {DESTINATION}" in out["error"]
    assert "src.identity" not in out  # nothing was proved
    assert (into["level"], into["message"]) == ("warn", "connection failed")
    assert "TLS alert" in into["error"]
    assert told.mesh.counters.counter("ztunnel_early_denials", "inbound", "tls").value == 1
    stages = {
        labels: sum(cell.numbers()[:-1])
        for (name, labels), cell in told.mesh.counters.cells.items()
        if name == "ztunnel_handshake_duration_seconds"
    }
    assert stages[("outbound", "connect", "ok")] == 1
    assert stages[("outbound", "tls", "failed")] == 1


async def test_an_unknown_destination_that_refuses(told: Told) -> None:
    node = str(list(told.pair.room.topology.nodes.values())[1].addresses[0])
    await ends(await told.pair.dial(7999, node))
    line = await told.line(lambda line: line["direction"] == "outbound")
    assert line["error"] == f"connect to {node}:7999: Connection refused"
    assert line["decision"].startswith("passed through: no service or workload of the mesh has")
    assert line["dst.addr"] == f"{node}:7999"
    assert "dst.workload" not in line
    assert "src.identity" not in line
    series = told.series("source", response_flags="CONNECT")
    labels = dict(zip(TCP_LABELS, series.labels, strict=True))
    assert labels["destination_workload"] == labels["source_principal"] == "unknown"
    assert labels["connection_security_policy"] == "unknown"


async def test_a_service_port_that_does_not_exist_says_which_do(told: Told) -> None:
    await ends(await told.pair.dial(8080, VIP))
    line = await told.line(lambda line: line["direction"] == "outbound")
    assert line["error"] == (
        "no healthy upstream: service shop/echo has no port 8080 (its ports: 80); add the port to"
        " the service"
    )
    assert line["dst.service"] == HOST


async def test_plaintext_is_counted_without_a_principal(told: Told) -> None:
    network = told.pair.room.node(1).network
    stream = await connect(network, told.pair.room.ip("server"), ECHO)
    await talk(stream, 1000)
    line = await told.line(lambda line: line["direction"] == "inbound")
    assert line["bytes_sent"] == line["bytes_recv"] == 1000
    assert (line["path"], line["decision"]) == ("copy", "plaintext to the pod's own port")
    assert "src.identity" not in line
    assert "dst.identity" not in line
    series = told.series("destination")
    labels = dict(zip(TCP_LABELS, series.labels, strict=True))
    assert labels["connection_security_policy"] == labels["source_principal"] == "unknown"
    assert labels["destination_service"] == HOST
    assert labels["destination_principal"] == DESTINATION
    assert numbers(series) == (1, 1, 0, 1000, 1000)


@pytest.mark.parametrize("closer", ["client", "server"])
async def test_who_closed_first_and_how(told: Told, closer: str) -> None:
    listener = told.pair.listen(7001)
    stream = await told.pair.dial(7001)
    accepted = await told.pair.accept(listener)
    await stream.send_all(b"ping")
    assert await receive_exactly(accepted, 4) == b"ping"
    abort(stream if closer == "client" else accepted)
    out, into = await told.both()
    for line in (out, into):
        assert line["closed_by"] == closer
        assert "error" in line
        # A stream that broke is told, and is no failure to connect.
        assert "response_flags" not in line
    assert numbers(told.series("source"))[:3] == (1, 1, 0)


async def test_drain(told: Told) -> None:
    stream = await told.pair.dial(80, VIP)
    await stream.send_all(b"12345")
    await receive_exactly(stream, 5)
    for pod in told.mesh.pods.values():
        pod.drain()
        pod.close("connection closed due to connection drain")
    out, into = await told.both()
    for line in (out, into):
        assert "connection drain" in line["error"]
        assert line["closed_by"] == "proxy"
        assert line["bytes_sent"] == line["bytes_recv"] == 5


async def test_a_pod_that_the_mesh_does_not_know_in_time(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ztunnel.proxy.local_pod.LOCAL_WORKLOAD_TIMEOUT", 0.1)
    told.mesh.apply(removed=[told.pair.client.uid, told.pair.server.uid])
    await ends(await told.pair.dial(80, VIP))
    out = await told.line(lambda line: line["direction"] == "outbound")
    assert "failed to fetch information about local workload shop/client" in out["error"]
    network = told.pair.room.node(1).network
    await ends(await connect(network, told.pair.room.ip("server"), ECHO))
    into = await told.line(lambda line: line["direction"] == "inbound")
    assert "failed to fetch information about local workload shop/server" in into["error"]
    for direction in ("outbound", "inbound"):
        counted = told.mesh.counters.counter
        assert counted("ztunnel_early_denials", direction, "unknown workload").value == 1
