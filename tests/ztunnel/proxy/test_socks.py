"""The SOCKS5 entry: what a pod asks for there is routed as if it had been captured."""

import ipaddress
import struct
from collections.abc import AsyncIterator

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.support.lab import lab
from tests.support.pair import ECHO, VIP, Pair
from tests.support.proxies import NAMESPACE, proxies, service
from tests.support.sockets import listen, receive_all, receive_exactly, serve_echo
from ztunnel.mesh.policy import (
    Authorization,
    Match,
    PolicyAction,
    PolicyScope,
    StringMatch,
    StringMatchKind,
)
from ztunnel.proxy.socks import SocksError, parse_greeting, parse_request

OK, FAILED, NOT_ALLOWED, UNREACHABLE, REFUSED, NO_COMMAND, NO_TYPE = 0, 1, 2, 4, 5, 7, 8


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    with lab(nodes=2, pods={"client": 1, "server": 2}) as room:
        async with (
            proxies(room, UNSTABLE_ENABLE_SOCKS5="true") as mesh,
            trio.open_nursery() as nursery,
        ):
            key = f"{NAMESPACE}/echo.{NAMESPACE}.svc.cluster.local"
            client = mesh.enroll("client")
            server = mesh.enroll(
                "server",
                services={key: {80: ECHO}},
                addresses=(room.ip("server"), room.ip("server", 6)),
            )
            mesh.apply(service("echo", VIP, {80: ECHO}))
            nursery.start_soon(serve_echo, listen(room.pod("server").network, ECHO))
            made = Pair(room, mesh, client, server)
            nursery.start_soon(serve_echo, made.listen(ECHO + 1))
            nursery.start_soon(
                serve_echo, listen(room.pod("server").network, ECHO, room.ip("server", 6))
            )
            yield made
            made.close()
            nursery.cancel_scope.cancel()


def request(host: str, port: int, command: int = 1) -> bytes:
    try:
        address = ipaddress.ip_address(host)
        kind = bytes((1 if address.version == 4 else 4,)) + address.packed
    except ValueError:
        kind = bytes((3, len(host))) + host.encode()
    return bytes((5, command, 0)) + kind + struct.pack("!H", port)


async def ask(pair: Pair, host: str, port: int, command: int = 1) -> tuple[int, trio.SocketStream]:
    """(code of the answer, the connection)."""
    stream = await pair.dial(15080, "127.0.0.1")
    with trio.fail_after(30):
        await stream.send_all(b"\x05\x01\x00")
        assert await receive_exactly(stream, 2) == b"\x05\x00"
        await stream.send_all(request(host, port, command))
        answer = await receive_exactly(stream, 10)
    assert answer[0] == 5
    return answer[1], stream


async def works(stream: trio.SocketStream) -> bool:
    with trio.fail_after(30):
        await stream.send_all(b"hello")
        return await receive_exactly(stream, 5) == b"hello"


@pytest.mark.root
@pytest.mark.parametrize("version", [4, 6])
async def test_a_pod_by_address_goes_through_a_tunnel(pair: Pair, version: int) -> None:
    code, stream = await ask(pair, pair.room.ip("server", version), ECHO)
    assert code == OK
    assert await works(stream)
    await stream.aclose()
    line = await pair.mesh.line('direction="outbound"', "bytes_sent=5 bytes_recv=5")
    assert f'dst.identity="{pair.server.identity.uri}"' in line


@pytest.mark.root
@pytest.mark.parametrize(
    "name", ["echo.shop.svc.cluster.local", "echo", "Echo.Shop.", "echo.shop.svc", VIP]
)
async def test_a_service_by_any_of_its_names(pair: Pair, name: str) -> None:
    code, stream = await ask(pair, name, 80)
    assert code == OK
    assert await works(stream)
    await stream.aclose()
    line = await pair.mesh.line('direction="outbound"', "bytes_sent=5")
    assert 'dst.service="echo.shop.svc.cluster.local"' in line


@pytest.mark.root
async def test_another_name_is_asked_of_the_real_dns(pair: Pair) -> None:
    pair.mesh.names["elsewhere.example"] = [pair.room.ip("server")]
    code, stream = await ask(pair, "elsewhere.example", ECHO)
    assert code == OK
    assert await works(stream)


@pytest.mark.root
async def test_refusals_come_in_the_codes_of_the_protocol(pair: Pair) -> None:
    assert (await ask(pair, "nowhere.example", 80))[0] == UNREACHABLE
    assert (await ask(pair, VIP, 81))[0] == UNREACHABLE  # the service has no such port
    assert (await ask(pair, pair.room.ip("server"), 7999))[0] == UNREACHABLE  # 503 there
    node = str(list(pair.room.topology.nodes.values())[1].addresses[0])
    assert (await ask(pair, node, 7999))[0] == REFUSED  # not in the mesh, so that errno is known
    assert (await ask(pair, "127.0.0.1", 15001))[0] == NOT_ALLOWED
    assert (await ask(pair, "127.0.0.1", 15080))[0] == NOT_ALLOWED
    assert (await ask(pair, VIP, 80, command=2))[0] == NO_COMMAND
    assert "attempted recursive call" in await pair.mesh.line("15080", "error=", "recursive")
    assert "is not CONNECT" in await pair.mesh.line("connection failed", "command 2")
    principal = StringMatch(StringMatchKind.PRESENCE)
    everybody = (((Match(principals=(principal,)),),),)
    pair.mesh.apply(
        Authorization(
            "nobody", NAMESPACE, PolicyScope.NAMESPACE, PolicyAction.DENY, rules=everybody
        )
    )
    assert (await ask(pair, VIP, 80))[0] == NOT_ALLOWED


@pytest.mark.root
async def test_a_client_that_wants_a_password_is_told_that_there_is_no_method(pair: Pair) -> None:
    stream = await pair.dial(15080, "127.0.0.1")
    with trio.fail_after(30):
        await stream.send_all(b"\x05\x01\x02")
        assert await receive_all(stream) == b"\x05\xff"


@pytest.mark.root
async def test_an_unknown_address_type_is_refused(pair: Pair) -> None:
    stream = await pair.dial(15080, "127.0.0.1")
    with trio.fail_after(30):
        await stream.send_all(b"\x05\x01\x00\x05\x01\x00\x09abcdef")
        answer = await receive_all(stream)
    assert answer[:2] == b"\x05\x00"
    assert answer[3] == NO_TYPE


@pytest.mark.root
async def test_it_is_off_by_default() -> None:
    with lab(nodes=1, pods={"client": 1}) as room:
        async with proxies(room) as mesh:
            client = mesh.enroll("client")
            pair = Pair(room, mesh, client, client)
            with pytest.raises(ConnectionRefusedError):
                await pair.dial(15080, "127.0.0.1")
            pair.close()


@given(st.binary(max_size=300))
def test_whatever_comes_is_read_refused_or_waited_for(data: bytes) -> None:
    for parse in (parse_greeting, parse_request):
        told = b""
        try:
            parse(data)
        except SocksError as error:
            told = error.answer
        assert told[:1] in (b"", b"\x05")


@given(
    st.one_of(st.ip_addresses().map(str), st.text("abc.-", min_size=1, max_size=255)),
    st.integers(0, 65535),
    st.integers(0, 20),
)
def test_a_request_is_understood_once_it_is_whole(host: str, port: int, cut: int) -> None:
    whole = request(host, port)
    for end in range(max(0, len(whole) - cut), len(whole)):
        assert parse_request(whole[:end]) is None
    found = parse_request(whole + b"rest")
    assert found is not None
    assert found[1:] == (port, len(whole))
