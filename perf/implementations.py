"""What can carry the load: each implementation is one class."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from perf.bench import CLIENT, SERVER, Bench
from tests.support import envoy_config
from tests.support.envoy import Envoy, EnvoyUnavailable, find_envoy
from tests.support.pki import make_root
from ztunnel.linux.netns import NetworkNamespace
from ztunnel.linux.nft_expressions import destination, mark, protocol, redirect
from ztunnel.linux.nft_tables import Chain, Rule, Table
from ztunnel.linux.nftables import Nftables
from ztunnel.mesh.identity import Identity

CAPTURE_PORT = 15001
MARK = 1337


class Implementation(Protocol):
    """Something between the two pods."""

    @property
    def name(self) -> str:
        """In results and in options."""
        ...

    @property
    def title(self) -> str:
        """In tables."""
        ...

    def missing(self) -> str | None:
        """Why it cannot run on this machine; None when it can."""
        ...

    def running(self, bench: Bench) -> AbstractContextManager[list[int]]:
        """Carries the load while the block lasts; gives the processes that do it.

        Their descendants count as well, and need not be named.
        """
        ...


@dataclass(frozen=True)
class Direct:
    """Nothing at all: what the machine can do."""

    name: str = "direct"
    title: str = "direct"

    def missing(self) -> str | None:
        return None

    @contextmanager
    def running(self, bench: Bench) -> Iterator[list[int]]:
        yield []


@dataclass(frozen=True)
class EnvoyPair:
    """An Envoy in each pod: captured traffic, an mTLS HBONE tunnel between them, access logs on."""

    workers: int

    @property
    def name(self) -> str:
        return f"envoy-{self.workers}"

    @property
    def title(self) -> str:
        return f"Envoy pair, {self.workers} worker{'s' if self.workers > 1 else ''} each"

    def missing(self) -> str | None:
        try:
            find_envoy()
        except EnvoyUnavailable as error:
            return str(error)
        return None

    @contextmanager
    def running(self, bench: Bench) -> Iterator[list[int]]:
        root = make_root()
        server = root.workload(Identity("cluster.local", "default", "server"))
        client = root.workload(Identity("cluster.local", "default", "client"))
        terminate = envoy_config.server(envoy_config.ServerOptions(access_log=True))
        originate = envoy_config.client(
            envoy_config.ClientOptions(capture_port=CAPTURE_PORT, mark=MARK, access_log=True)
        )
        inside, outside = bench.namespace(SERVER), bench.namespace(CLIENT)
        folder = bench.folder
        with (
            Envoy(folder / "server", terminate, server, inside, self.workers) as far,
            Envoy(folder / "client", originate, client, outside, self.workers) as near,
        ):
            capture(outside)
            yield [near.pid, far.pid]


def capture(namespace: NetworkNamespace) -> None:
    """Redirect what the pod's processes send, but for marked packets and loopback."""
    rule = Rule(
        (
            *protocol(socket.IPPROTO_TCP),
            *mark(MARK, 0xFFF, negated=True),
            *destination("127.0.0.1", negated=True),
            *redirect(CAPTURE_PORT),
        )
    )
    chain = Chain("output", (rule,), hook="output", kind="nat", priority=-100)
    with Nftables(namespace) as nftables:
        nftables.replace(Table("capture", (chain,)))


ALL: tuple[Implementation, ...] = (Direct(), EnvoyPair(1), EnvoyPair(2))
