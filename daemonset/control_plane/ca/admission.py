"""Who may ask for which identity. Pure.

A service account may always ask for its own. A node's proxy may ask for those of the pods that
live on its own node and belong to the mesh, in the mesh's trust domain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from daemonset.control_plane.ca.authenticator import Caller
from daemonset.control_plane.objects.pod import Pod
from daemonset.control_plane.translation.resident import Groups, Viewpoint
from ztunnel.mesh.identity import Identity, IdentityError


class RefusedError(Exception):
    """The caller may not have this identity; the text says why."""


@dataclass(frozen=True, slots=True)
class Directory:
    """What admission must know of the mesh.

    Attributes:
        pods: by (namespace, name).
        belongs: is this pod in the mesh, or wanted in it?
        residents: the same pods by where they live.
    """

    pods: Mapping[tuple[str, str], Pod]
    belongs: Callable[[Pod], bool]
    residents: Groups

    def on_node(self, node: str) -> Iterator[Pod]:
        """Pods that have not ended."""
        for key in self.residents.get(Viewpoint(node=node), ()):
            pod = self.pods.get((key.namespace, key.name))
            if key.kind == "Pod" and pod is not None:
                yield pod


@dataclass(frozen=True, slots=True)
class Admission:
    """``node_proxies`` are the "namespace/account" that may ask for others' identities."""

    trust_domain: str
    node_proxies: frozenset[str]

    def identity(self, caller: Caller, impersonated: str, directory: Directory) -> Identity:
        """The identity to sign.

        Args:
            impersonated: a SPIFFE URI, or "" where the caller asks for its own (which it may
                also ask for by name: a node's proxy does, for its own ports).

        Raises:
            RefusedError: saying why.
        """
        own = Identity(self.trust_domain, caller.namespace, caller.service_account)
        if impersonated in ("", own.uri):
            if caller.pod:
                self.node_of(caller, directory)
            return own
        if not self.is_node_proxy(caller):
            account = f"{caller.namespace}/{caller.service_account}"
            raise RefusedError(f"{account} is not a node proxy and may ask for its own only")
        try:
            identity = Identity.parse(impersonated)
        except IdentityError as error:
            raise RefusedError(f"not a SPIFFE identity: {error}") from None
        if identity.trust_domain != self.trust_domain:
            raise RefusedError(
                f"trust domain {identity.trust_domain!r} is not the mesh's ({self.trust_domain!r})"
            )
        node = self.node_of(caller, directory)
        self._check_lives_on(node, identity, directory)
        return identity

    def is_node_proxy(self, caller: Caller) -> bool:
        """Is it one of those that may speak for others?"""
        return f"{caller.namespace}/{caller.service_account}" in self.node_proxies

    def node_of(self, caller: Caller, directory: Directory) -> str:
        """The node that the caller is on.

        Raises:
            RefusedError: its token is bound to nothing that is there.
        """
        if not caller.pod:
            # A process of the node itself, in the mesh of one machine.
            if not caller.node:
                raise RefusedError("the token is bound neither to a pod nor to a node")
            return caller.node
        pod = directory.pods.get((caller.namespace, caller.pod))
        if pod is None or pod.finished:
            raise RefusedError(f"the caller's pod {caller.namespace}/{caller.pod} is not there")
        if not caller.pod_uid or pod.meta.uid != caller.pod_uid:
            raise RefusedError(f"pod {caller.namespace}/{caller.pod} is another one by now (UID)")
        if pod.service_account != caller.service_account:
            raise RefusedError(f"pod {caller.namespace}/{caller.pod} runs as {pod.service_account}")
        if not pod.node:
            raise RefusedError(f"pod {caller.namespace}/{caller.pod} is on no node yet")
        if caller.node and caller.node != pod.node:
            raise RefusedError(f"pod {caller.namespace}/{caller.pod} is not on {caller.node}")
        return pod.node

    def _check_lives_on(self, node: str, identity: Identity, directory: Directory) -> None:
        def runs_as_it(pod: Pod) -> bool:
            own = (pod.meta.namespace, pod.service_account)
            return own == (identity.namespace, identity.service_account) and not pod.finished

        here = [pod for pod in directory.on_node(node) if runs_as_it(pod)]
        if any(pod.node == node and directory.belongs(pod) for pod in here):
            return
        account = f"{identity.namespace}/{identity.service_account}"
        if here:
            raise RefusedError(f"the pods of {account} on {node} are not in the mesh")
        if any(map(runs_as_it, directory.pods.values())):
            raise RefusedError(f"pods of {account} live on other nodes, none on {node}")
        raise RefusedError(f"no pod of {account} lives on {node}")
