"""What is known of a node's pods: from the Kubernetes API, and earlier from the CNI plugin.

Pure.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from daemonset.agent.enrolment import EnrolmentOptions, decide_enrolment
from daemonset.agent.pods import Pod
from daemonset.agent.proc_netns import CONFIG_HASH
from daemonset.control_plane.objects.pod import Pod as ApiPod


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A pod's network as the CNI plugin told of it, before the API has an address for the pod."""

    netns: str
    addresses: tuple[str, ...]


class PodBook:
    """Pods by UID, and the labels of namespaces by name."""

    def __init__(self) -> None:
        self._pods: dict[str, ApiPod] = {}
        self._namespaces: dict[str, Mapping[str, str]] = {}
        self._sandboxes: dict[str, Sandbox] = {}
        self._going: set[str] = set()

    def put_namespace(self, name: str, labels: Mapping[str, str], *, going: bool = False) -> None:
        """It is new, or its labels may have changed, or it is `going`: being deleted."""
        self._namespaces[name] = labels
        if going:
            self._going.add(name)
        else:
            self._going.discard(name)

    def drop_namespace(self, name: str) -> None:
        """It is no more."""
        self._namespaces.pop(name, None)
        self._going.discard(name)

    def retain_namespaces(self, names: frozenset[str]) -> None:
        """Of all namespaces only these are left (a new list)."""
        for name in self._namespaces.keys() - names:
            self.drop_namespace(name)

    def put_pod(self, pod: ApiPod) -> None:
        """A pod of this node is new, or has changed."""
        self._pods[pod.meta.uid] = pod

    def drop_pod(self, uid: str) -> None:
        """It is no more."""
        self._pods.pop(uid, None)
        self._sandboxes.pop(uid, None)

    def retain_pods(self, uids: frozenset[str]) -> None:
        """Of all pods only these are left (a new list)."""
        for uid in self._pods.keys() - uids:
            self.drop_pod(uid)

    def find(self, uid: str, namespace: str, name: str) -> str | None:
        """The UID in the API of a pod that a container runtime names, once it is known well enough
        to decide about it: static pods have another UID there, and old runtimes tell none."""
        if namespace not in self._namespaces:
            return None
        if uid in self._pods:
            return uid
        for pod in self._pods.values():
            meta = pod.meta
            same = not uid or meta.annotations.get(CONFIG_HASH) == uid
            if same and (meta.namespace, meta.name) == (namespace, name) and not pod.finished:
                return meta.uid
        return None

    def has(self, uid: str) -> bool:
        """Whether there is such a pod on this node."""
        return uid in self._pods

    def tell(self, uid: str, sandbox: Sandbox) -> None:
        """The CNI plugin told of a pod's network; of several the last one counts."""
        if uid in self._pods:
            self._sandboxes[uid] = sandbox

    def annotation(self, uid: str, name: str) -> str | None:
        """What the API has for a pod; None also for pods that are no more."""
        pod = self._pods.get(uid)
        return pod.meta.annotations.get(name) if pod is not None else None

    def namespace_label(self, namespace: str, name: str) -> str:
        """A label of a namespace; "" where there is none."""
        return self._namespaces.get(namespace, {}).get(name, "")

    def is_going(self, namespace: str) -> bool:
        """Whether a namespace is being deleted, with all that is in it."""
        return namespace in self._going

    def pods(self) -> list[Pod]:
        """All of them, as the agent wants them."""
        return [self._pod(pod) for pod in self._pods.values()]

    def _pod(self, pod: ApiPod) -> Pod:
        sandbox = self._sandboxes.get(pod.meta.uid)
        addresses = pod.ips
        # The API comes after the plugin. Where it does not agree, it still has the address of a
        # sandbox before this one.
        if sandbox is not None and set(sandbox.addresses).isdisjoint(addresses):
            addresses = sandbox.addresses
        return Pod(
            uid=pod.meta.uid,
            name=pod.meta.name,
            namespace=pod.meta.namespace,
            service_account=pod.service_account,
            addresses=addresses,
            labels=pod.meta.labels,
            annotations=pod.meta.annotations,
            namespace_labels=self._namespaces.get(pod.meta.namespace, {}),
            host_network=pod.host_network,
            phase=pod.phase,
            netns=sandbox.netns if sandbox is not None else "",
        )

    def unenrolled_namespaces(self, options: EnrolmentOptions) -> frozenset[str]:
        """Namespaces where nobody is in the mesh, and whose ordinary pods would not be.

        For the time when the agent is away: in these a pod may start without it. One that asks for
        the mesh by a label of its own is captured when the agent is back.
        """
        found: set[str] = set()
        for name, labels in self._namespaces.items():
            ordinary = Pod("", "", name, "", namespace_labels=labels)
            if not decide_enrolment(ordinary, options).enrolled:
                found.add(name)
        for pod in self.pods():
            if decide_enrolment(pod, options).enrolled:
                found.discard(pod.namespace)
        return frozenset(found)
