"""What variables of the environment do to traffic, each set one way and the other."""

import json
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.ads_server import AdsServer, Stream
from tests.support.lab import Lab, lab
from tests.support.one_ztunnel import (
    ACK,
    PATIENCE,
    SNAPSHOT_SENT,
    Cni,
    Running,
    add,
    captured,
    echoes,
    listeners,
    mesh_yaml,
    wait_for,
)
from ztunnel.xds.protocol import AUTHORIZATION_TYPE

pytestmark = [pytest.mark.root, pytest.mark.slow]


SILENCE = 1.0
"""Seconds after which nothing having happened means that nothing will."""
NOBODY_ON_TRIAL = """
policies:
- {name: nobody, namespace: default, scope: Global, action: Deny, rules: [[]], dryRun: true}
"""


@contextmanager
def dedicated(
    tmp_path: Path, pod: str, *, subject_to: str = "", more: str = "", **env: str
) -> Iterator[tuple[Lab, Running]]:
    """A ztunnel that serves one pod, which is captured, of two that know each other."""
    with lab(nodes=1, pods={"client": 1, "server": 1}) as room:
        room.app("server", echo=7000)
        ztunnel = Running(
            room, pod, tmp_path / "ztunnel.log",
            PROXY_MODE="dedicated", PROXY_WORKLOAD_INFO=f"default/{pod}/default",
            LOCAL_XDS=mesh_yaml(room, "client", "server", subject_to=subject_to, more=more),
            PACKET_MARK="1337", ZTUNNEL_WORKER_THREADS="1", ISTIO_META_DNS_CAPTURE="false",
            **env,
        )  # fmt: skip
        ztunnel.until_ready()
        with captured(room, pod):
            yield room, ztunnel
        ztunnel.stop()


@pytest.mark.parametrize("enabled", [True, False])
def test_enable_proxy(tmp_path: Path, enabled: bool) -> None:
    """Off: no pods are asked for nor served; the rest of it is there and says so."""
    with (
        tempfile.TemporaryDirectory(prefix="zt-") as place,
        lab(nodes=1, pods={"client": 1, "server": 1}) as room,
        ExitStack() as stack,
    ):
        cni = Cni(Path(place) / "zds.sock")
        stack.callback(cni.close)
        ztunnel = Running(
            room, 1, tmp_path / "ztunnel.log",
            INPOD_UDS=str(Path(place) / "zds.sock"), ZTUNNEL_WORKER_THREADS="1",
            LOCAL_XDS=mesh_yaml(room, "client", "server"),
            POD_NAME="ztunnel-x", POD_NAMESPACE="istio-system", SERVICE_ACCOUNT="ztunnel",
            ENABLE_PROXY=str(enabled).lower(),
        )  # fmt: skip
        client, node = room.pod("client").network, room.node(1).network
        if enabled:
            cni.accept()
            assert cni.ask(add("u-client", "client"), client.fd) == ACK
            assert cni.ask(SNAPSHOT_SENT) == ACK
        ztunnel.until_ready()
        dump = json.loads(ztunnel.get(15000, "/config_dump")[1])
        assert [one["name"] for one in dump["workloads"]] == ["client", "server"]
        assert dump["config"]["proxyEnabled"] is enabled
        if enabled:
            assert listeners(client).keys() >= {15001, 15006, 15008}
            wait_for(lambda: 15008 in listeners(node), "its own port", ztunnel.log)
        else:
            assert not cni.is_called(SILENCE)
            assert listeners(client) == {}
            assert 15008 not in listeners(node)
        ztunnel.stop()


@pytest.mark.parametrize("info", [True, False])
def test_authz_policy_info_logging(tmp_path: Path, info: bool) -> None:
    """What a policy on trial would have done is said at info, or only to whoever debugs."""
    with dedicated(
        tmp_path, "server", more=NOBODY_ON_TRIAL, AUTHZ_POLICY_INFO_LOGGING=str(info).lower()
    ) as (room, ztunnel):
        words = "dry run: policy default/nobody (rule 1) would deny"

        def levels() -> set[str]:
            lines = ztunnel.log.read_text().splitlines()
            return {line.split()[1] for line in lines if words in line}

        assert echoes(room, "client", room.ip("server"))
        ztunnel.until_metric(
            1, "ztunnel_authorization_decisions_total",
            policy="default/nobody", action="deny", mode="dry_run",
        )  # fmt: skip
        ztunnel.says('direction="inbound"')  # written after what is said here of the connection
        assert levels() == ({"info"} if info else set())
        assert ztunnel.post(15000, "/logging?level=debug") == 200

        def said() -> bool:
            return echoes(room, "client", room.ip("server")) and bool(levels())

        wait_for(said, "what it would have done", ztunnel.log)
        assert levels() == {"info" if info else "debug"}


@pytest.mark.parametrize("setting", ["deny", "allow", ""])
def test_ztunnel_unknown_policy(tmp_path: Path, setting: str) -> None:
    env = {"ZTUNNEL_UNKNOWN_POLICY": setting} if setting else {}
    with dedicated(tmp_path, "server", subject_to="default/ghost", **env) as (room, ztunnel):
        assert echoes(room, "client", room.ip("server")) is (setting == "allow")
        ztunnel.says('direction="inbound"')
        said = "is subject to policy default/ghost" in ztunnel.log.read_text()
        assert said is (setting != "allow")


@contextmanager
def asking(tmp_path: Path, timeout: str) -> Iterator[tuple[Lab, Running, Stream]]:
    """A ztunnel that asks a control plane for addresses it does not know, and waits so long."""
    with lab(nodes=1, pods={"client": 1, "server": 1}) as room:
        room.app("server", echo=7000)
        with room.pod("client").network.enter():
            control_plane = AdsServer(None)
        try:
            ztunnel = Running(
                room, "client", tmp_path / "ztunnel.log",
                PROXY_MODE="dedicated", PROXY_WORKLOAD_INFO="default/client/default",
                LOCAL_XDS=mesh_yaml(room, "client"),
                XDS_ADDRESS=f"http://127.0.0.1:{control_plane.port}", XDS_ON_DEMAND="true",
                PACKET_MARK="1337", ZTUNNEL_WORKER_THREADS="1", ISTIO_META_DNS_CAPTURE="false",
                ZTUNNEL_LOOKUP_TIMEOUT=timeout,
            )  # fmt: skip
            stream = control_plane.streams.get(timeout=PATIENCE)
            stream.send(type_url=AUTHORIZATION_TYPE)
            ztunnel.until_ready()
            with captured(room, "client"):
                yield room, ztunnel, stream
            ztunnel.stop()
        finally:
            control_plane.stop()


def asked_for(stream: Stream, key: str) -> None:
    """Returns once the client has asked for this."""
    while True:
        request = stream.requests.get(timeout=PATIENCE)
        assert request is not None
        if key in request.resource_names_subscribe:
            return


def test_ztunnel_lookup_timeout_short(tmp_path: Path) -> None:
    """Nobody answers: what may belong to the mesh is refused once the time is over."""
    with asking(tmp_path, "500ms") as (room, ztunnel, stream):
        began = time.monotonic()
        assert not echoes(room, "client", room.ip("server"))
        took = time.monotonic() - began
        assert 0.4 < took < PATIENCE
        asked_for(stream, "/" + room.ip("server"))
        ztunnel.says("did not answer for")
        ztunnel.says(f"no answer about /{room.ip('server')} has come")
        assert "within 0.5 s" in ztunnel.log.read_text()


def test_ztunnel_lookup_timeout_long(tmp_path: Path) -> None:
    """The same silence is waited for, and the answer is in time."""
    with asking(tmp_path, "10m") as (room, ztunnel, stream):
        key = "/" + room.ip("server")
        with room.pod("client").network.socket(socket.AF_INET, socket.SOCK_STREAM) as talk:
            talk.settimeout(SILENCE)
            talk.connect((room.ip("server"), 7000))
            talk.sendall(b"hello")
            asked_for(stream, key)
            with pytest.raises(TimeoutError):
                talk.recv(5)
            stream.send(removed=(key,))  # nobody of the mesh: it goes as it would without
            talk.settimeout(PATIENCE)
            assert talk.recv(5) == b"hello"
        ztunnel.says("passed through")
