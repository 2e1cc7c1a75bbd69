from typing import Any

from daemonset.agent.enrolment import MODE_LABEL, EnrolmentOptions
from daemonset.agent.pod_book import PodBook, Sandbox
from daemonset.control_plane.objects.located import locate
from daemonset.control_plane.objects.pod import Pod as ApiPod
from daemonset.control_plane.objects.pod import read_pod
from daemonset.control_plane.objects.section import Section

AMBIENT = {MODE_LABEL: "ambient"}


def pod(uid: str, namespace: str = "shop", name: str = "", **status: Any) -> ApiPod:
    labels = status.pop("labels", {})
    annotations = status.pop("annotations", {})
    metadata = {
        "name": name or f"pod-{uid}", "namespace": namespace, "uid": uid, "labels": labels,
        "annotations": annotations,
    }  # fmt: skip
    spec = {"nodeName": "n1", "serviceAccountName": "web"}
    value = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    return read_pod(Section(locate({**value, "status": status})))


def book(*pods: ApiPod, **namespaces: dict[str, str]) -> PodBook:
    made = PodBook()
    for name, labels in namespaces.items():
        made.put_namespace(name, labels)
    for each in pods:
        made.put_pod(each)
    return made


def test_what_the_api_says_becomes_a_pod() -> None:
    made = book(pod("1", podIP="10.0.0.1", phase="Running", labels={"a": "b"}), shop=AMBIENT)
    [found] = made.pods()
    assert (found.uid, found.name, found.namespace) == ("1", "pod-1", "shop")
    assert (found.service_account, found.addresses, found.netns) == ("web", ("10.0.0.1",), "")
    assert (found.labels, found.namespace_labels, found.phase) == ({"a": "b"}, AMBIENT, "Running")


def test_the_plugin_tells_before_the_api_does() -> None:
    made = book(pod("1"), shop={})
    made.tell("1", Sandbox("/run/netns/a", ("10.0.0.1", "fd00::1")))
    assert made.pods()[0].addresses == ("10.0.0.1", "fd00::1")
    assert made.pods()[0].netns == "/run/netns/a"
    made.put_pod(pod("1", podIP="10.0.0.1", phase="Running"))
    assert made.pods()[0].addresses == ("10.0.0.1",)
    # A sandbox made again under the same UID: the API still has the former address.
    made.tell("1", Sandbox("/run/netns/b", ("10.0.0.9",)))
    assert made.pods()[0].addresses == ("10.0.0.9",)
    assert made.pods()[0].netns == "/run/netns/b"
    made.drop_pod("1")
    assert made.pods() == []
    made.put_pod(pod("1"))
    assert made.pods()[0].netns == "", "a pod that comes back has another sandbox"


def test_pods_as_runtimes_name_them() -> None:
    made = book(pod("1", name="web"), pod("2", name="web-old", phase="Succeeded"), shop={})
    assert made.find("1", "shop", "web") == "1"
    assert made.find("", "shop", "web") == "1"
    assert made.find("7", "shop", "web") is None, "the one before has the same name"
    assert made.find("", "shop", "web-old") is None
    assert made.find("1", "street", "web") is None, "the namespace's labels are not known yet"
    static = pod("api", name="etcd", annotations={"kubernetes.io/config.hash": "cafe"})
    made.put_pod(static)
    assert made.find("cafe", "shop", "etcd") == "api"


def test_a_new_list_drops_what_is_not_in_it() -> None:
    made = book(pod("1"), pod("2"), shop={})
    made.tell("1", Sandbox("/a", ()))
    made.retain_pods(frozenset({"2"}))
    assert [each.uid for each in made.pods()] == ["2"]


def test_namespaces_where_nobody_is_in_the_mesh() -> None:
    made = book(
        pod("1", "own", labels=AMBIENT), pod("2", "gone", labels=AMBIENT, phase="Failed"),
        shop=AMBIENT, street={}, own={}, gone={},
    )  # fmt: skip
    made.put_namespace("kube-system", AMBIENT)
    assert made.unenrolled_namespaces(EnrolmentOptions()) == {"street", "gone", "kube-system"}
    made.put_namespace("street", AMBIENT)
    made.drop_namespace("gone")
    assert made.unenrolled_namespaces(EnrolmentOptions()) == {"kube-system"}
