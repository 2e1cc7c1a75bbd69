"""A mesh to break: a client and a server, each on its own node, both enrolled."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pyroute2 import IPRoute

from tests.support.mesh_lab import MeshLab, mesh_lab
from tests.support.ztunnel_processes import ZtunnelProcesses


class FaultLab:
    """The mesh, and the processes of both its ztunnels."""

    def __init__(self, mesh: MeshLab) -> None:
        self.mesh = mesh
        self.near = ZtunnelProcesses(mesh, "node-1")
        """The client's."""
        self.far = ZtunnelProcesses(mesh, "node-2")
        """The server's."""

    @property
    def server(self) -> tuple[str, int]:
        """Where tests have their echo."""
        return (self.mesh.ip("server"), 7000)


@contextmanager
def fault_lab(
    folder: Path,
    ztunnel: Mapping[str, str] | None = None,
    *,
    enrol: bool = True,
    pods: dict[str, int] | None = None,
    objects: str = "",
) -> Iterator[FaultLab]:
    """`ztunnel` is more of the environment of both of them; everybody in "default" is enrolled."""
    everybody = {"client": 1, "server": 2, **(pods or {})}
    with mesh_lab(folder, pods=everybody, objects=objects, ztunnel=ztunnel) as mesh:
        if enrol:
            mesh.enrol()
        yield FaultLab(mesh)


@contextmanager
def unreachable(mesh: MeshLab, node: str) -> Iterator[None]:
    """A node vanishes from the network without a word, for as long as the block lasts."""
    _set_link(mesh, node, "down")
    try:
        yield
    finally:
        _set_link(mesh, node, "up")


def _set_link(mesh: MeshLab, node: str, state: str) -> None:
    underlay = mesh.mesh.network.underlay
    assert underlay is not None

    def change() -> None:
        with IPRoute() as route:
            (index,) = route.link_lookup(ifname=mesh.mesh.topology.nodes[node].link)
            route.link("set", index=index, state=state)

    mesh.mesh.keeper.call(underlay, change)
