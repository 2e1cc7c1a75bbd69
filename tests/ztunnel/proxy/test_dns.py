"""The DNS of a pod, captured for real: what the mesh answers, and what the real DNS does."""

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import dns.flags
import dns.message
import dns.rcode
import pytest
import trio

from tests.support.lab import lab
from tests.support.nameserver import NODATA, REFUSED, SILENT, Nameserver
from tests.support.pair import Pair
from tests.support.proxies import NAMESPACE, Proxies, proxies, service, workload
from tests.support.sockets import connect, receive_exactly
from ztunnel.dns.server import MAX_FORWARDED
from ztunnel.mesh.service import IPFamilies, Service
from ztunnel.mesh.workload import NetworkAddress, WorkloadStatus
from ztunnel.proxy import names
from ztunnel.telemetry.counters import Cell

pytestmark = pytest.mark.root

RESOLVER = "10.96.0.10"
"""What the pod takes for its nameserver; nobody is there."""
SUFFIX = f"{NAMESPACE}.svc.cluster.local"
VIP, VIP6 = "10.96.0.50", "fd00:10:96::50"


class Dns:
    """A pod, and the nameserver behind its proxy."""

    def __init__(self, pair: Pair, upstream: Nameserver) -> None:
        self.pair = pair
        self.mesh = pair.mesh
        self.upstream = upstream

    async def ask(
        self, name: str, kind: str = "A", *, tcp: bool = False, payload: int = 0
    ) -> dns.message.Message:
        """A question of the pod, and what comes back."""
        query = dns.message.make_query(name, kind, payload=payload, use_edns=0 if payload else -1)
        wire = query.to_wire()
        network = self.pair.room.pod("client").network
        with trio.fail_after(30):
            if tcp:
                async with await connect(network, RESOLVER, 53) as stream:
                    await stream.send_all(len(wire).to_bytes(2, "big") + wire)
                    length = int.from_bytes(await receive_exactly(stream, 2), "big")
                    answer = await receive_exactly(stream, length)
            else:
                family = trio.socket.AF_INET
                with trio.socket.from_stdlib_socket(
                    network.socket(family, trio.socket.SOCK_DGRAM)
                ) as sock:
                    await sock.connect((RESOLVER, 53))
                    await sock.send(wire)
                    answer = await sock.recv(65535)
        response = dns.message.from_wire(answer)
        assert query.is_response(response)
        return response

    async def addresses(self, name: str, kind: str = "A") -> list[str]:
        """Of an answer without error."""
        response = await self.ask(name, kind)
        assert response.rcode() == dns.rcode.NOERROR
        return sorted(
            record.address
            for rrset in response.answer
            for record in rrset
            if rrset.rdtype.name == kind
        )


@pytest.fixture
def patience() -> int:
    """Seconds that the proxy waits for its nameserver."""
    return 2


@pytest.fixture
async def room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int
) -> AsyncIterator[Dns]:
    with lab(nodes=2, pods={"client": 1, "server": 2}) as machines:
        node = str(list(machines.topology.nodes.values())[1].addresses[0])
        conf = tmp_path / "resolv.conf"
        conf.write_text(f"nameserver {node}\noptions timeout:{patience} attempts:1\n")
        monkeypatch.setattr(names, "RESOLV_CONF", conf)
        async with (
            proxies(machines, ISTIO_META_DNS_CAPTURE="true") as mesh,
            trio.open_nursery() as nursery,
        ):
            upstream = Nameserver(machines.node(2).network, node)
            nursery.start_soon(upstream.run)
            pair = Pair(machines, mesh, mesh.enroll("client"), workload(machines, "server"))
            fill(mesh, pair)
            yield Dns(pair, upstream)
            pair.close()
            nursery.cancel_scope.cancel()


def fill(mesh: Proxies, pair: Pair) -> None:
    dual = dataclasses.replace(
        service("echo", VIP, {80: 80}), vips=(NetworkAddress("", VIP), NetworkAddress("", VIP6))
    )
    four = dataclasses.replace(
        service("four", "10.96.0.51", {80: 80}), ip_families=IPFamilies.IPV4_ONLY
    )
    headless = Service("db", NAMESPACE, f"db.{SUFFIX}", ports={5432: 5432})
    elsewhere = Service(
        "echo", "other", "echo.other.svc.cluster.local",
        vips=(NetworkAddress("", "10.96.0.60"),), ports={80: 80},
    )  # fmt: skip
    external = Service(
        "api", NAMESPACE, "api.example.com", vips=(NetworkAddress("", "240.240.0.1"),),
        ports={443: 443},
    )  # fmt: skip
    wildcard = dataclasses.replace(
        external, name="wild", hostname="*.wild.example", vips=(NetworkAddress("", "240.240.0.2"),)
    )
    without = dataclasses.replace(external, name="plain", hostname="plain.example.com", vips=())
    behind = {headless.key: {5432: 5432}}
    both = (pair.room.ip("server"), pair.room.ip("server", 6))
    db0 = dataclasses.replace(pair.server, uid="db-0", name="db-0", services=behind, addresses=both)
    db1 = dataclasses.replace(db0, uid="db-1", name="db-1", addresses=("10.244.2.77",))
    ill = dataclasses.replace(
        db0, uid="db-2", name="db-2", addresses=("10.244.2.78",), status=WorkloadStatus.UNHEALTHY
    )
    mesh.apply(dual, four, headless, elsewhere, external, wildcard, without, db0, db1, ill)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        (f"echo.{SUFFIX}", VIP),
        ("echo", VIP),
        ("ECHO.Shop.Svc.Cluster.Local", VIP),
        ("echo.other", "10.96.0.60"),
        ("echo.other.svc", "10.96.0.60"),
        # What a C library makes of "echo.other" with ndots:5 and the kubelet's search domains.
        (f"echo.other.{SUFFIX}", "10.96.0.60"),
        ("echo.other.svc.cluster.local", "10.96.0.60"),
        ("api.example.com", "240.240.0.1"),
        ("deep.below.wild.example", "240.240.0.2"),
    ],
)
async def test_services_by_every_name(room: Dns, name: str, address: str) -> None:
    assert await room.addresses(name) == [address]
    assert room.upstream.asked == []


async def test_answers_are_authoritative_and_short_lived(room: Dns) -> None:
    response = await room.ask(f"echo.{SUFFIX}")
    assert response.flags & dns.flags.AA
    assert response.flags & dns.flags.RA
    assert response.answer[0].ttl == 30


async def test_an_external_name_behind_a_search_domain_is_an_alias(room: Dns) -> None:
    response = await room.ask(f"api.example.com.{SUFFIX}")
    alias, records = response.answer
    assert alias[0].target.to_text() == "api.example.com."
    assert records.name.to_text() == "api.example.com."
    assert records[0].address == "240.240.0.1"


async def test_families(room: Dns) -> None:
    """A name that exists and has no such address is no error, and nothing is asked upstream."""
    assert await room.addresses(f"echo.{SUFFIX}", "AAAA") == [VIP6]
    assert await room.addresses(f"four.{SUFFIX}", "AAAA") == []
    assert await room.addresses(f"four.{SUFFIX}") == ["10.96.0.51"]
    assert room.upstream.asked == []


async def test_a_headless_service_has_its_healthy_endpoints(room: Dns) -> None:
    server = room.pair.room
    assert await room.addresses("db") == sorted([server.ip("server"), "10.244.2.77"])
    assert await room.addresses("db", "AAAA") == [server.ip("server", 6)]
    assert await room.addresses(f"db-1.db.{SUFFIX}") == ["10.244.2.77"]
    assert await room.addresses("db-1.db") == ["10.244.2.77"]
    assert room.upstream.asked == []


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
async def test_other_names_are_asked_upstream_from_inside_the_pod(room: Dns, tcp: bool) -> None:
    room.upstream.zone |= {"www.example.org": ["192.0.2.1"], "empty.example.org": NODATA}
    response = await room.ask("www.example.org", tcp=tcp)
    assert response.answer[0][0].address == "192.0.2.1"
    assert response.answer[0].ttl == 7
    assert not response.flags & dns.flags.AA
    empty = await room.ask("empty.example.org", tcp=tcp)
    assert (empty.rcode(), empty.answer) == (dns.rcode.NOERROR, [])
    assert (await room.ask("missing.example.org", tcp=tcp)).rcode() == dns.rcode.NXDOMAIN
    assert (await room.ask("echo", "TXT", tcp=tcp)).rcode() == dns.rcode.NXDOMAIN
    protocol = "tcp" if tcp else "udp"
    me = room.pair.room.ip("client")
    assert room.upstream.asked[0] == ("www.example.org", "A", protocol, me)
    assert {(asked[2], asked[3]) for asked in room.upstream.asked} == {(protocol, me)}


async def test_an_external_service_without_address_is_the_real_dns_own(room: Dns) -> None:
    room.upstream.zone["plain.example.com"] = ["192.0.2.9"]
    assert await room.addresses("plain.example.com") == ["192.0.2.9"]


async def test_long_answers(room: Dns) -> None:
    many = sorted(f"192.0.2.{number}" for number in range(1, 101))
    room.upstream.zone["many.example.org"] = many
    cut = await room.ask("many.example.org")
    assert cut.flags & dns.flags.TC
    whole = await room.ask("many.example.org", tcp=True)
    assert sorted(record.address for record in whole.answer[0]) == many
    # The proxy fetches by TCP what a client takes in one datagram.
    wide = await room.ask("many.example.org", payload=4096)
    assert not wide.flags & dns.flags.TC
    assert len(wide.answer[0]) == 100


async def test_an_upstream_that_does_not_answer(room: Dns) -> None:
    room.upstream.zone |= {"silent.example.org": SILENT, "no.example.org": REFUSED}
    assert (await room.ask("silent.example.org")).rcode() == dns.rcode.SERVFAIL
    assert (await room.ask("no.example.org")).rcode() == dns.rcode.REFUSED
    # The mesh's own names do not depend on it.
    assert await room.addresses("echo") == [VIP]


async def test_a_pod_that_the_mesh_does_not_know_gets_servfail(room: Dns) -> None:
    room.mesh.apply(removed=[room.pair.client.uid])
    assert (await room.ask("echo")).rcode() == dns.rcode.SERVFAIL


async def test_without_ipv6_nobody_gets_such_an_address() -> None:
    with lab(nodes=1, pods={"client": 1}) as machines:
        async with proxies(machines, ISTIO_META_DNS_CAPTURE="true", IPV6_ENABLED="false") as mesh:
            pair = Pair(
                machines, mesh, mesh.enroll("client"), workload(machines, "client", uid="x")
            )
            described = dataclasses.replace(
                service("echo", VIP, {80: 80}), vips=(NetworkAddress("", VIP6),)
            )
            mesh.apply(described)
            upstream = Nameserver(machines.node(1).network, "127.0.0.9")
            assert await Dns(pair, upstream).addresses("echo", "AAAA") == []
            upstream.close()


@pytest.mark.parametrize("patience", [30])
async def test_a_flood_of_questions_is_bounded(room: Dns, caplog: pytest.LogCaptureFixture) -> None:
    """Upstream is silent: some wait, the rest is refused at once, and the mesh is answered."""
    room.upstream.zone["silent.example.org"] = SILENT
    network = room.pair.room.pod("client").network
    query = dns.message.make_query("silent.example.org", "A")
    too_many = 200

    def asked() -> Cell:
        labels = ("a", "udp", "client", "unknown")
        return room.mesh.counters.counter("istio_dns_requests", *labels)

    sock = trio.socket.from_stdlib_socket(
        network.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
    )
    with sock:
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 1 << 20)
        await sock.connect((RESOLVER, 53))
        for number in range(MAX_FORWARDED + too_many):
            query.id = number
            await sock.send(query.to_wire())
            if number % 50 == 49:  # so that the kernel's own queue does not overflow
                with trio.fail_after(30):
                    while asked().value <= number:
                        await trio.sleep(0.005)
        assert await room.addresses("echo") == [VIP]
        refused: set[int] = set()
        with trio.fail_after(30):
            while len(refused) < too_many:
                response = dns.message.from_wire(await sock.recv(512))
                assert response.rcode() == dns.rcode.SERVFAIL
                refused.add(response.id)
    # Those that came first wait still.
    assert refused == set(range(MAX_FORWARDED, MAX_FORWARDED + too_many))
    assert len(room.upstream.asked) <= MAX_FORWARDED
    # The log is not flooded either.
    said = [line for line in caplog.messages if "silent.example.org" in line]
    assert 1 <= len(said) < 30


async def test_questions_are_counted_as_istio_does(room: Dns) -> None:
    room.upstream.zone |= {"www.example.org": ["192.0.2.1"], "silent.example.org": SILENT}
    await room.ask("echo")
    await room.ask("echo", "AAAA", tcp=True)
    await room.ask("www.example.org")
    await room.ask("silent.example.org")
    cells = room.mesh.counters.cells
    source = ("client", "unknown")
    assert cells["istio_dns_requests", ("a", "udp", *source)].numbers() == [3]
    assert cells["istio_dns_requests", ("aaaa", "tcp", *source)].numbers() == [1]
    assert cells["istio_dns_upstream_requests", ("a", "udp", *source)].numbers() == [2]
    assert cells["istio_dns_upstream_failures", ("a", "udp", *source)].numbers() == [1]
    took = cells["istio_dns_upstream_request_duration_seconds", ("a", "udp", *source)].numbers()
    assert sum(took[:-1]) == 1
