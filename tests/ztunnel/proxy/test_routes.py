"""What is worked out once for many connections, and that it is forgotten when the mesh changes."""

from random import Random

import pytest

from ztunnel.mesh.changes import Batch
from ztunnel.mesh.decision import Hbone
from ztunnel.mesh.outbound import decide
from ztunnel.mesh.service import Service
from ztunnel.mesh.state import MeshState
from ztunnel.mesh.workload import NetworkAddress, TunnelProtocol, Workload
from ztunnel.proxy.routes import Routes

DIRECT = ("10.0.0.2", 80)
VIRTUAL = ("10.1.0.1", 80)


def pod(name: str, address: str, **changes: object) -> Workload:
    values: dict[str, object] = {
        "uid": f"//Pod/{name}", "name": name, "namespace": "shop", "service_account": name,
        "addresses": (address,), "tunnel_protocol": TunnelProtocol.HBONE,
    }  # fmt: skip
    return Workload(**{**values, **changes})  # type: ignore[arg-type]


CLIENT = pod("client", "10.0.0.1")
ENDPOINT = {"shop/web.shop": {80: 8080}}
FIRST = pod("first", "10.0.0.2", services=ENDPOINT)
SECOND = pod("second", "10.0.0.3", services=ENDPOINT)


@pytest.fixture
def state() -> MeshState:
    made = MeshState()
    web = Service("web", "shop", "web.shop", vips=(NetworkAddress("", VIRTUAL[0]),), ports={80: 0})
    made.apply(Batch((CLIENT, FIRST, SECOND, web)))
    return made


def hbone(state: MeshState, destination: tuple[str, int]) -> Hbone:
    decision = decide(state, CLIENT, destination, rng=Random(1))
    assert isinstance(decision, Hbone)
    return decision


def test_a_workload_by_its_address_is_always_the_same_one(state: MeshState) -> None:
    routes = Routes(state)
    assert routes.certain(DIRECT) is None
    route = routes.of(DIRECT, hbone(state, DIRECT))
    assert routes.certain(DIRECT) is route
    assert routes.of(DIRECT, hbone(state, DIRECT)) is route
    assert route.key.expected == (FIRST.identity,)


def test_an_endpoint_of_a_service_is_chosen_each_time(state: MeshState) -> None:
    routes = Routes(state)
    found = {
        routes.of(VIRTUAL, decision).key.address
        for decision in (decide(state, CLIENT, VIRTUAL, rng=Random(seed)) for seed in range(50))
        if isinstance(decision, Hbone)
    }
    assert found == {("10.0.0.2", 15008), ("10.0.0.3", 15008)}
    assert routes.certain(VIRTUAL) is None


def test_a_change_of_the_mesh_forgets_all(state: MeshState) -> None:
    routes = Routes(state)
    before = routes.of(DIRECT, hbone(state, DIRECT))
    state.upsert_workload(pod("first", "10.0.0.2", service_account="other"))
    assert routes.certain(DIRECT) is None
    after = routes.of(DIRECT, hbone(state, DIRECT))
    assert after is not before
    assert after.key != before.key
    assert routes.certain(DIRECT) is after
