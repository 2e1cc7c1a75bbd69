"""A control plane that stands on the Kubernetes API (see ``backend``)."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

import trio

from daemonset.control_plane.ca.authority import Authority
from daemonset.control_plane.ca.generations import OVERLAP
from daemonset.control_plane.ca.issuer import AuthorityError
from daemonset.control_plane.ca.overlap import RootOverlap
from daemonset.control_plane.ca.root_maps import RootMaps
from daemonset.control_plane.ca.secret_authority import SecretAuthority
from daemonset.control_plane.ca.token_review import TokenReviewVerifier
from daemonset.control_plane.ca.tokens import TokenSigner
from daemonset.control_plane.condition_writer import ConditionWriter
from daemonset.control_plane.conditions import Judgement
from daemonset.control_plane.farewell import Farewell
from daemonset.control_plane.other_planes import refuse_others, watch_for_others
from daemonset.control_plane.sources.kubernetes import KubernetesSource
from daemonset.control_plane.translation.settings import MeshSettings
from daemonset.kube.client import KubeClient
from daemonset.kube.lease import LeaderElection, LeaseTimes
from daemonset.kube.reflector import Pace

LEASE = "ambient-control-plane"


@dataclass(frozen=True, slots=True)
class Replica:
    """One of the control plane's processes.

    Attributes:
        namespace: where the control plane itself lives; its Lease is there.
        name: its own, unlike that of any other: its pod's.
        farewell: the port for that (see ``farewell``); 0 is any that is free.
    """

    namespace: str
    name: str
    farewell: int = 0


class KubernetesBackend:
    """Objects, tokens and the authority from the Kubernetes API. Made by ``open``."""

    signer: TokenSigner | None = None

    def __init__(
        self,
        client: KubeClient,
        secrets: SecretAuthority,
        authority: Authority,
        settings: MeshSettings,
        replica: Replica,
        pace: Pace | None,
        lease_times: LeaseTimes | None,
    ) -> None:
        self._client = client
        self._settings = settings
        self._secrets = secrets
        self.authority = authority
        self._overlap = RootOverlap(authority, OVERLAP)
        self._roots = authority.roots_pem
        self.source = KubernetesSource(client, pace)
        self.verifier = TokenReviewVerifier(client)
        self.election = LeaderElection(client, replica.namespace, LEASE, replica.name, lease_times)
        self.conditions = ConditionWriter(client, self.election, self.source, settings, pace)
        self.farewell = Farewell(self.source, replica.farewell)
        self._maps = RootMaps(client, self.election, lambda: self._roots, replica.namespace, pace)

    @classmethod
    async def open(
        cls,
        client: KubeClient,
        settings: MeshSettings,
        replica: Replica,
        pace: Pace | None = None,
        lease_times: LeaseTimes | None = None,
    ) -> KubernetesBackend:
        """Read the authority, or make it; to be called in the trio thread that will serve.

        Raises:
            OtherControlPlaneError: the mesh has one already.
            AuthorityError: there is none that can be used.
            ApiError, ApiUnavailableError: the API server refuses, or does not answer.
        """
        await refuse_others(client, settings)
        secrets = SecretAuthority(client, settings.root_namespace, settings.trust_domain)
        authority = await secrets.open()
        return cls(client, secrets, authority, settings, replica, pace, lease_times)

    async def read_authority(self) -> Authority:
        found = await self._secrets.read()
        if found is None:
            raise AuthorityError("the Secret with the authority is gone")
        return self._overlap.next(found, datetime.datetime.now(datetime.UTC))

    async def hand_out_roots(self, roots_pem: str) -> None:
        self._roots = roots_pem
        self._maps.look()

    def judged(self, judgement: Judgement) -> None:
        self.conditions.judged(judgement)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.election.run)
            nursery.start_soon(self._maps.run)
            nursery.start_soon(self.conditions.run)
            nursery.start_soon(watch_for_others, self._client, self._settings)
            await nursery.start(self.farewell.run)

    async def finish(self) -> None:
        await self.farewell.finish()

    def __str__(self) -> str:
        return f"the Kubernetes API at {self._client}"
