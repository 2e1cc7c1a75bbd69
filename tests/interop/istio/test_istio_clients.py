"""Istio's own client libraries against our control plane, our CA and our node agent."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from google.protobuf.json_format import MessageToDict, Parse

from daemonset.agent.zds_server import ZdsServer
from tests.support.istio.binaries import find
from tests.support.istio.comparison import ask
from tests.support.istio.objects import read_objects, token_of, write_objects
from tests.support.kube.cluster import Cluster
from tests.support.kube.plane import PATIENCE, Running, control_plane
from ztunnel.linux import netns
from ztunnel.proto.authorization_pb2 import Authorization
from ztunnel.proto.workload_pb2 import Address
from ztunnel.zds.messages import WorkloadInfo

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mesh(cluster: Cluster) -> Cluster:
    """All objects of the comparison, and a ztunnel."""
    write_objects(cluster, read_objects())
    return cluster


def play(part: str, *arguments: str) -> bytes:
    """Run the peer to its end; its output."""
    command = [str(find("istio-peer")), part, *arguments]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def files(running: Running, folder: Path, token: str) -> tuple[str, str, str]:
    """Address, roots and token, as the peer wants them."""
    roots = folder / "roots.pem"
    roots.write_text(running.plane.roots_pem)
    (folder / "token").write_text(token)
    return f"localhost:{running.ports.tls}", str(roots), str(folder / "token")


async def test_its_xds_client_reads_what_ours_says(mesh: Cluster, tmp_path: Path) -> None:
    token = await trio.to_thread.run_sync(token_of, mesh, "istio-system", "ztunnel-1")
    async with control_plane(mesh) as running:
        output = await trio.to_thread.run_sync(
            lambda: play("resources", *files(running, tmp_path, token))
        )
        ours = await trio.to_thread.run_sync(
            ask, f"localhost:{running.ports.tls}", running.plane.roots_pem, token, "node-1"
        )
    read: dict[str, Any] = json.loads(output)
    assert read.keys() == {name.partition("/")[2] for name in ours.resources}
    for name, value in read.items():
        # Istio's own types have read it; each field that it names is one that ours knows too.
        kind = Address if f"Address/{name}" in ours.resources else Authorization
        message = Parse(json.dumps(value), kind())
        assert MessageToDict(message) == value


async def test_its_ca_client_gets_a_certificate(mesh: Cluster, tmp_path: Path) -> None:
    token = await trio.to_thread.run_sync(token_of, mesh, "routed", "routed")
    async with control_plane(mesh) as running:
        output = await trio.to_thread.run_sync(
            lambda: play("certificate", *files(running, tmp_path, token))
        )
        roots = x509.load_pem_x509_certificates(running.plane.roots_pem.encode())
    start = output.rindex(b"-----BEGIN")
    leaf, *others = x509.load_pem_x509_certificates(output[:start])
    assert leaf.public_key() == load_pem_private_key(output[start:], None).public_key()
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    [uri] = names.get_values_for_type(x509.UniformResourceIdentifier)
    assert uri == "spiffe://cluster.local/ns/routed/sa/default"
    assert others[-1] == roots[-1]
    leaf.verify_directly_issued_by(others[0])


@contextmanager
def ztunnel(path: Path) -> Iterator[subprocess.Popen[str]]:
    """The peer's end of ZDS."""
    command = [str(find("istio-peer")), "ztunnel", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.root
async def test_a_ztunnel_of_its_messages_is_fed_by_our_agent(tmp_path: Path) -> None:
    server = ZdsServer(tmp_path / "zds.sock")
    seen: list[dict[str, Any]] = []

    async def read(process: subprocess.Popen[str], count: int) -> None:
        assert process.stdout is not None
        with trio.fail_after(PATIENCE):
            while len(seen) < count:
                line = await trio.to_thread.run_sync(process.stdout.readline)
                seen.append(json.loads(line))

    with netns.create() as first, netns.create() as second:
        server.put("u-1", WorkloadInfo("one", "shop", "a"), first)
        server.put("u-2", WorkloadInfo("two", "shop", "b"), None)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            with ztunnel(tmp_path / "zds.sock") as process:
                await read(process, 3)
                server.put("u-3", WorkloadInfo("three", "shop", "c"), second)
                await server.add("u-3")
                await server.delete("u-1")
                await read(process, 5)
            nursery.cancel_scope.cancel()
        inodes = [first.identity.inode, second.identity.inode]
    assert seen == [
        {"message": added("u-1", "one", "a"), "netns": inodes[0]},
        {"message": {"keep": {"uid": "u-2"}}},
        {"message": {"snapshotSent": {}}},
        {"message": added("u-3", "three", "c"), "netns": inodes[1]},
        {"message": {"del": {"uid": "u-1"}}},
    ]


def added(uid: str, name: str, account: str) -> dict[str, Any]:
    info = {"name": name, "namespace": "shop", "serviceAccount": account}
    return {"add": {"uid": uid, "workloadInfo": info}}
