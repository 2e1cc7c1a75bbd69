"""Where the root of trust is kept, who makes it, and who hands it out."""

from __future__ import annotations

import base64
import datetime
from collections.abc import Iterator
from functools import partial

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from daemonset.control_plane.ca.issuer import (
    AuthorityError,
    Issuer,
    key_to_pem,
    new_root,
    to_pem,
)
from daemonset.control_plane.ca.secret_authority import SecretAuthority, read_secret
from daemonset.kube.lease import LeaderElection
from tests.support.kube.cluster import ApiFailure, Cluster, Json
from tests.support.kube.plane import PATIENCE, QUICK_LEASE, client_of, control_plane

SECRETS = "/api/v1/namespaces/istio-system/secrets"
ROOT_MAP = "istio-ca-root-cert"
in_thread = trio.to_thread.run_sync


@pytest.fixture
def mesh(cluster: Cluster) -> Iterator[Cluster]:
    """The namespaces of a mesh, without any root of trust before and after."""
    for name in ("istio-system", "ambient-system", "shop"):
        cluster.namespace(name)
    yield cluster
    remove_secrets(cluster)
    for item in cluster.call("GET", maps_path())["items"]:
        meta = item["metadata"]
        cluster.call("DELETE", f"/api/v1/namespaces/{meta['namespace']}/configmaps/{meta['name']}")


def remove_secrets(cluster: Cluster) -> None:
    for item in cluster.call("GET", SECRETS)["items"]:
        cluster.call("DELETE", f"{SECRETS}/{item['metadata']['name']}")


def maps_path() -> str:
    return f"/api/v1/configmaps?fieldSelector=metadata.name%3D{ROOT_MAP}"


def roots_by_namespace(cluster: Cluster) -> dict[str, str]:
    return {
        item["metadata"]["namespace"]: item["data"]["root-cert.pem"]
        for item in cluster.call("GET", maps_path())["items"]
    }


def secret(name: str, data: dict[str, bytes]) -> Json:
    encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
    meta = {"name": name, "namespace": "istio-system"}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "data": encoded}


def given() -> tuple[Json, x509.Certificate]:
    """What a user plugs in: an intermediate below a root whose key stays elsewhere."""
    now = datetime.datetime.now(datetime.UTC)
    root_key, root = new_root("a company", now)
    key, certificate = Issuer(root_key, (), root).new_intermediate("its mesh", now)
    data = {
        "ca-key.pem": key_to_pem(key),
        "ca-cert.pem": to_pem(certificate).encode(),
        "cert-chain.pem": (to_pem(certificate) + to_pem(root)).encode(),
        "root-cert.pem": to_pem(root).encode(),
    }
    return secret("cacerts", data), root


async def handed_out(cluster: Cluster, roots: str, *namespaces: str) -> None:
    with trio.fail_after(PATIENCE):
        while True:
            found = await in_thread(roots_by_namespace, cluster)
            if all(found.get(name) == roots for name in namespaces):
                return
            await trio.sleep(0.05)


async def test_a_root_is_made_once_and_handed_out_everywhere(mesh: Cluster) -> None:
    async with control_plane(mesh) as first:
        roots = first.plane.roots_pem
        await handed_out(mesh, roots, "istio-system", "ambient-system", "shop", "kube-system")
        await in_thread(mesh.namespace, "later")
        await handed_out(mesh, roots, "later")
        # Whoever changes it, or takes it away, finds it as it was.
        at = f"/api/v1/namespaces/shop/configmaps/{ROOT_MAP}"
        await in_thread(mesh.call, "DELETE", at)
        await handed_out(mesh, roots, "shop")
        patch = partial(mesh.call, content_type="application/merge-patch+json")
        await in_thread(patch, "PATCH", at, {"data": {"root-cert.pem": "nonsense"}})
        await handed_out(mesh, roots, "shop")
        # Kubernetes takes the maps away with the control plane's namespace.
        home = await in_thread(mesh.call, "GET", "/api/v1/namespaces/ambient-system")
        [owner] = (await in_thread(mesh.call, "GET", at))["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"]) == ("Namespace", home["metadata"]["uid"])
    made = await in_thread(mesh.call, "GET", f"{SECRETS}/istio-ca-secret")
    assert made["type"] == "istio.io/ca-root"
    assert {"ca-cert.pem", "ca-key.pem", "root-cert.pem"} <= made["data"].keys()
    async with control_plane(mesh) as second:
        assert second.plane.roots_pem == roots


async def test_of_many_that_start_at_once_one_makes_the_root(mesh: Cluster) -> None:
    found: list[str] = []

    async with client_of(mesh) as client:

        async def start() -> None:
            secrets = SecretAuthority(client, "istio-system", "cluster.local")
            found.append((await secrets.open()).roots_pem)

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(start)
    assert len(found) == 8
    assert len(set(found)) == 1


async def test_a_missing_secret_of_a_mesh_in_use_is_an_error_and_makes_no_new_root(
    mesh: Cluster,
) -> None:
    async with control_plane(mesh) as running:
        await handed_out(mesh, running.plane.roots_pem, "shop")
    await in_thread(remove_secrets, mesh)
    async with client_of(mesh) as client:
        with pytest.raises(AuthorityError, match="restore the Secret from a backup"):
            await SecretAuthority(client, "istio-system", "cluster.local").open()
    with pytest.raises(ApiFailure) as failure:
        await in_thread(mesh.call, "GET", f"{SECRETS}/istio-ca-secret")
    assert failure.value.status == 404


async def test_an_authority_that_the_user_plugs_in_wins(mesh: Cluster) -> None:
    item, root = given()
    async with control_plane(mesh) as running:
        own = running.plane.roots_pem
        await handed_out(mesh, own, "shop")
        await in_thread(mesh.apply, item)
    async with control_plane(mesh) as running:
        assert running.plane.roots_pem == to_pem(root) != own
        assert len(running.backend.authority.chain_pem) == 1
        await handed_out(mesh, to_pem(root), "shop")


async def test_an_authority_that_changes_is_taken_over_while_serving(mesh: Cluster) -> None:
    item, root = given()
    async with control_plane(mesh) as running:
        await in_thread(mesh.apply, item)
        before = running.backend.authority
        authority = await running.backend.read_authority()
        # First everybody must know the new root: nothing is signed below it until then.
        assert authority.issuer == before.issuer
        assert authority.roots_pem == before.roots_pem + to_pem(root)
        await running.backend.hand_out_roots(authority.roots_pem)
        await handed_out(mesh, authority.roots_pem, "shop", "istio-system")


async def test_a_map_of_another_owner_is_left_alone(
    mesh: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    theirs: Json = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": ROOT_MAP, "namespace": "shop"},
        "data": {"root-cert.pem": "another mesh's"},
    }
    await in_thread(mesh.apply, given()[0])  # else roots without a Secret would be an error
    await in_thread(mesh.apply, theirs)
    async with control_plane(mesh) as running:
        await handed_out(mesh, running.plane.roots_pem, "istio-system", "ambient-system")
        with trio.fail_after(PATIENCE):
            while "shop/istio-ca-root-cert belongs to somebody else" not in caplog.text:
                await trio.sleep(0.05)
        found = await in_thread(roots_by_namespace, mesh)
        assert found["shop"] == "another mesh's"
        await in_thread(mesh.delete, theirs)
        await handed_out(mesh, running.plane.roots_pem, "shop")


def test_secrets_as_istio_and_cert_manager_write_them() -> None:
    now = datetime.datetime.now(datetime.UTC)
    key, root = new_root("self-signed", now)
    pem = to_pem(root).encode()
    istio = {
        "ca-cert.pem": pem,
        "ca-key.pem": key_to_pem(key),
        "cert-chain.pem": b"",
        "key.pem": b"",
    }
    found = read_secret(secret("istio-ca-secret", istio), now)
    assert found.roots == (root,)
    assert found.chain_pem == []
    tls = {"tls.crt": pem, "tls.key": key_to_pem(key), "ca.crt": pem}
    assert read_secret(secret("cacerts", tls), now) == found


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"ca-key.pem": b""}, "ca-key.pem and ca-cert.pem are needed"),
        ({"ca-cert.pem": b"nonsense"}, "certificate"),
        (
            {"ca-key.pem": key_to_pem(rsa.generate_private_key(65537, 2048))},
            "the key does not belong",
        ),
        (
            {
                "root-cert.pem": to_pem(
                    new_root("x", datetime.datetime.now(datetime.UTC))[1]
                ).encode()
            },
            "no root has issued",
        ),
    ],
)
def test_a_secret_that_holds_no_authority(change: dict[str, bytes], complaint: str) -> None:
    item, _ = given()
    item["data"].update({key: base64.b64encode(value).decode() for key, value in change.items()})
    with pytest.raises(AuthorityError, match=f"Secret istio-system/cacerts.*{complaint}"):
        read_secret(item, datetime.datetime.now(datetime.UTC))


async def test_one_leads_and_another_takes_over(mesh: Cluster) -> None:
    async with client_of(mesh) as client, trio.open_nursery() as nursery:
        elections = [
            LeaderElection(client, "ambient-system", "try", name, QUICK_LEASE) for name in "abc"
        ]

        def leaders() -> list[LeaderElection]:
            return [election for election in elections if election.is_leader]

        scopes = []
        for election in elections:
            scope = trio.CancelScope()
            scopes.append(scope)

            async def run(
                election: LeaderElection = election, scope: trio.CancelScope = scope
            ) -> None:
                with scope:
                    await election.run()

            nursery.start_soon(run)
        with trio.fail_after(PATIENCE):
            while not leaders():
                await trio.sleep(0.02)
        [first] = leaders()
        for _ in range(20):
            assert leaders() == [first]
            await trio.sleep(0.05)
        # Given back at the end, it is taken over at once.
        scopes[elections.index(first)].cancel()
        with trio.fail_after(QUICK_LEASE.duration):
            while first.is_leader or not leaders():
                await trio.sleep(0.02)
        [second] = leaders()
        # Without an API server nobody can know who leads: the leader steps down.
        await in_thread(mesh.stop_api)
        try:
            with trio.fail_after(PATIENCE):
                while second.is_leader:
                    await trio.sleep(0.02)
        finally:
            await in_thread(mesh.start_api)
        with trio.fail_after(PATIENCE):
            while not leaders():
                await trio.sleep(0.02)
        assert len(leaders()) == 1
        nursery.cancel_scope.cancel()


async def test_a_lease_is_not_taken_before_it_has_run_out(mesh: Cluster) -> None:
    path = "/apis/coordination.k8s.io/v1/namespaces/ambient-system/leases"
    held = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "held", "namespace": "ambient-system"},
        # Long ago by their clock: which says nothing about ours.
        "spec": {
            "holderIdentity": "somebody",
            "leaseDurationSeconds": 2,
            "renewTime": "2020-01-01T00:00:00.000000Z",
        },
    }
    await in_thread(mesh.call, "POST", path, held)
    async with client_of(mesh) as client, trio.open_nursery() as nursery:
        election = LeaderElection(client, "ambient-system", "held", "we", QUICK_LEASE)
        started = trio.current_time()
        nursery.start_soon(election.run)
        with trio.fail_after(PATIENCE):
            await election.changed.wait()
        assert trio.current_time() - started >= 2.0
        assert election.is_leader
        nursery.cancel_scope.cancel()


async def test_only_the_leader_hands_out_roots(mesh: Cluster) -> None:
    async with control_plane(mesh, "one") as one, control_plane(mesh, "two") as two:
        await handed_out(mesh, one.plane.roots_pem, "shop")
        assert [one.backend.election.is_leader, two.backend.election.is_leader].count(True) == 1
        assert one.plane.roots_pem == two.plane.roots_pem
