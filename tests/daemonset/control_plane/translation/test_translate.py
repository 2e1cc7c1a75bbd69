"""The whole translation: one change is one change, and it is quick."""

from __future__ import annotations

import time

from daemonset.control_plane.translation.settings import MeshSettings
from daemonset.control_plane.translation.translate import Translation, Translator
from tests.support.control_plane import AMBIENT_SHOP, read_objects


def large_mesh(pods: int) -> str:
    """Five pods to a service, a policy for every tenth service, over 10 namespaces."""
    documents = [
        f"{{apiVersion: v1, kind: Namespace, metadata: {{name: ns{number}, "
        "labels: {istio.io/dataplane-mode: ambient}}}"
        for number in range(10)
    ]
    for number in range(pods // 5):
        place = f"name: s{number}, namespace: ns{number % 10}"
        documents.append(
            f"{{apiVersion: v1, kind: Service, metadata: {{{place}}}, "
            f"spec: {{clusterIP: 10.96.{number >> 8}.{number & 255}, "
            f"selector: {{app: a{number}}}, ports: [{{port: 80, targetPort: 8080}}]}}}}"
        )
        if number % 10 == 0:
            documents.append(
                "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, "
                f"metadata: {{{place}}}, spec: {{selector: {{matchLabels: {{app: a{number}}}}}, "
                "rules: [{from: [{source: {namespaces: [x]}}]}]}}"
            )
        documents += [
            f"{{apiVersion: v1, kind: Pod, metadata: {{name: p{pod}, "
            f"namespace: ns{number % 10}, labels: {{app: a{number}}}}}, "
            f"spec: {{nodeName: n{pod % 50}}}, "
            f"status: {{podIP: 10.{pod >> 16}.{pod >> 8 & 255}.{pod & 255}}}}}"
            for pod in range(number * 5, number * 5 + 5)
        ]
    return "\n---\n".join(documents)


def changed(before: Translation, after: Translation) -> list[str]:
    pairs = ((before.addresses, after.addresses), (before.authorizations, after.authorizations))
    return [
        name
        for old, new in pairs
        for name in sorted(old.keys() | new.keys())
        if name not in old or name not in new or old[name].version != new[name].version
    ]


def test_one_changed_pod_changes_one_resource() -> None:
    text = large_mesh(50)
    translator = Translator(MeshSettings())
    before = translator.translate(read_objects(text))
    after = translator.translate(read_objects(text.replace("podIP: 10.0.0.7}", "podIP: 10.9.0.7}")))
    assert changed(before, after) == ["Kubernetes//Pod/ns1/p7"]


def test_the_order_of_objects_does_not_matter() -> None:
    documents = large_mesh(50).split("\n---\n")
    one = Translator(MeshSettings()).translate(read_objects("\n---\n".join(documents)))
    other = Translator(MeshSettings()).translate(read_objects("\n---\n".join(documents[::-1])))
    assert changed(one, other) == []
    assert one.findings == other.findings


def test_a_thousand_pods_take_a_fraction_of_a_second() -> None:
    """Less than a tenth where the processor does nothing else."""
    objects = read_objects(large_mesh(1000))
    times = []
    for _ in range(5):
        translator = Translator(MeshSettings())  # one that has seen them has little to do
        started = time.process_time()
        result = translator.translate(objects)
        times.append(time.process_time() - started)
    assert len(result.addresses) == 1200
    assert min(times) < 0.3


def test_nothing_becomes_nothing_but_the_static_policy() -> None:
    result = Translator(MeshSettings()).translate(read_objects(AMBIENT_SHOP))
    assert not result.addresses
    assert list(result.authorizations) == ["istio-system/istio_converted_static_strict"]
