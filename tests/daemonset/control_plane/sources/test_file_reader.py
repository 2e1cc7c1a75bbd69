"""One file of objects."""

from __future__ import annotations

import textwrap

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from daemonset.control_plane.objects.located import Located, locate
from daemonset.control_plane.objects.registry import read_object
from daemonset.control_plane.objects.section import ObjectError
from daemonset.control_plane.sources import file_reader
from daemonset.control_plane.sources.file_reader import FileContent, read_file
from daemonset.control_plane.sources.yaml_documents import read_documents


def read(text: str) -> FileContent:
    return read_file("f.yaml", textwrap.dedent(text).encode())


def test_documents_and_lists_of_several_kinds() -> None:
    content = read(
        """
        apiVersion: v1
        kind: List
        items:
        - {apiVersion: v1, kind: Node, metadata: {name: a}}
        - {apiVersion: v1, kind: ServiceAccount, metadata: {name: b}}
        ---
        apiVersion: v1
        kind: PodList
        items: [{apiVersion: v1, kind: Pod, metadata: {name: c, namespace: d}}]
        ---
        apiVersion: apps/v1
        kind: Deployment
        metadata: {name: e}
        ---
        apiVersion: serving.knative.dev/v1
        kind: Service
        metadata: {name: f}
        """
    )
    assert not content.problems
    assert [str(item.key) for item in content.objects] == [
        "Node a",
        "ServiceAccount default/b",
        "Pod d/c",
    ]
    assert content.ignored == (("apps/v1 Deployment", 12), ("serving.knative.dev/v1 Service", 16))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [", "f.yaml:1: did not find expected node content"),
        ("- 1", "f.yaml:1: must be a mapping, not a list"),
        ("kind: Pod", "f.yaml:1: Pod: apiVersion: is missing"),
        ("apiVersion: v1\nkind: Pod", "f.yaml:1: Pod: metadata: is missing"),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: A_b}",
            "f.yaml:3: Pod A_b: metadata.name: is not a Kubernetes name: 'A_b'",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: a/b}",
            "f.yaml:3: Pod a/b/a: metadata.namespace: is not a Kubernetes name: 'a/b'",
        ),
        (
            "apiVersion: v1\nkind: Node\nmetadata: {name: a, namespace: b}",
            "f.yaml:3: Node b/a: metadata.namespace: a Node belongs to no namespace",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels:\n    on: 'x'",
            "f.yaml:6: a key must be a string: put it in quotes",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels:\n    x: yes",
            "f.yaml:6: Pod a: metadata.labels.x: must be a string, not a boolean (true): "
            "put it in quotes",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: b}\n"
            "spec:\n  containers:\n  - ports:\n    - containerPort: '80'",
            "f.yaml:7: Pod b/a: spec.containers[0].ports[0].containerPort: "
            "must be a whole number, not a string",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nstatus: {podIP: 10.0.0.256}",
            "f.yaml:4: Pod a: status.podIP: is not an IP address: '10.0.0.256'",
        ),
        (
            "apiVersion: v2\nkind: Pod\nmetadata: {name: a}",
            "f.yaml:1: Pod a: apiVersion: version 'v2' is not known (known: v1)",
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: AuthorisationPolicy\nmetadata: {name: a}",
            "f.yaml:2: AuthorisationPolicy a: kind: is not a kind of security.istio.io: "
            "'AuthorisationPolicy'",
        ),
        (
            "apiVersion: v1\nkind: List\nitems:\n  kind: Pod",
            "f.yaml:3: List: items: must be a list",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 70000}]}",
            "f.yaml:4: Service a: spec.ports[0].port: must be from 1 to 65535, not 70000",
        ),
    ],
)
def test_errors_name_file_line_object_and_field(text: str, expected: str) -> None:
    content = read_file("f.yaml", text.encode())
    assert [str(problem) for problem in content.problems] == [expected]


def test_every_broken_object_is_named() -> None:
    content = read(
        """
        apiVersion: v1
        kind: Node
        metadata: {}
        ---
        apiVersion: v1
        kind: Node
        metadata: {name: good}
        ---
        apiVersion: v1
        kind: Node
        metadata: {name: 7}
        """
    )
    assert [problem.line for problem in content.problems] == [4, 12]


def test_an_object_twice_in_a_file_is_an_error() -> None:
    node = "apiVersion: v1\nkind: Node\nmetadata: {name: a}\n"
    content = read_file("f.yaml", f"{node}---\n{node}".encode())
    assert [str(problem) for problem in content.problems] == [
        "f.yaml:5: Node a: is there twice in this file (first on line 1)"
    ]


def test_bytes_that_are_no_text_are_an_error_with_a_line() -> None:
    content = read_file("f.yaml", b"a: 1\nb: \xff\n")
    assert [str(problem) for problem in content.problems] == ["f.yaml:2: is not UTF-8: byte 0xff"]


@given(data=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    content = read_file("f.yaml", data)
    assert all(problem.line >= 1 for problem in content.problems)


KINDS = [
    ("v1", "Namespace"),
    ("v1", "Node"),
    ("v1", "Pod"),
    ("v1", "Service"),
    ("v1", "ServiceAccount"),
    ("discovery.k8s.io/v1", "EndpointSlice"),
    ("networking.istio.io/v1", "ServiceEntry"),
    ("networking.istio.io/v1", "WorkloadEntry"),
    ("security.istio.io/v1", "AuthorizationPolicy"),
    ("security.istio.io/v1", "PeerAuthentication"),
    ("gateway.networking.k8s.io/v1", "Gateway"),
    ("gateway.networking.k8s.io/v1", "GatewayClass"),
]
WORDS = """
spec status metadata selector matchLabels rules from to when source operation ports port principals
ipBlocks key values notValues action mtls mode portLevelMtls 80 endpoints addresses address hosts
resolution containers name number targetPort podIP podIPs ip conditions type targetRefs kind
listeners protocol allowedRoutes namespaces clusterIP labels annotations provider matchExpressions
operator workloadSelector
"""
FIELDS = st.sampled_from(WORDS.split())
SCALARS = st.sampled_from(
    [
        *("", "a", "*", "80", "10.0.0.1", "STRICT", "DENY", "HBONE", "Selector", "In"),
        *(0, 80, -1, None, True, 1.5, 10**30),
    ]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=5),
    max_leaves=25,
)


@given(kind=st.sampled_from(KINDS), fields=st.dictionaries(FIELDS, VALUES, max_size=4))
def test_any_object_is_read_or_refused(kind: tuple[str, str], fields: dict[str, object]) -> None:
    fields = {"metadata": {"name": "x"}, **fields, "apiVersion": kind[0], "kind": kind[1]}
    content = read_file("f.yaml", yaml.safe_dump(fields).encode())
    assert bool(content.objects) != bool(content.problems)
    # The same object without lines, as the Kubernetes API gives it, comes to the same.
    try:
        same = read_object(locate(yaml.safe_load(yaml.safe_dump(fields))))
    except ObjectError:
        assert content.problems
    else:
        assert content.objects[0].object == same


def test_an_empty_list_is_nothing() -> None:
    for items in ("[]", "null"):
        content = read(f"{{apiVersion: v1, kind: List, items: {items}}}")
        assert content == FileContent("f.yaml", (), ())


NODE = "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: {}\n"


def nodes(*names: str) -> bytes:
    return "".join(NODE.format(name) for name in names).encode()


def test_documents_that_have_not_changed_are_not_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts: list[str] = []

    def noted(text: str) -> list[Located]:
        texts.append(text)
        return read_documents(text)

    monkeypatch.setattr(file_reader, "read_documents", noted)
    before = read_file("f.yaml", nodes("a", "b", "c"))
    texts.clear()
    after = read_file("f.yaml", nodes("x", "a", "b", "d"), before)
    assert [text.split()[-1] for text in texts if text] == ["x", "d"]
    assert [loaded.object.meta.name for loaded in after.objects] == ["x", "a", "b", "d"]
    assert after.objects[2].object is before.objects[1].object
    # Their lines are those of now.
    places = [loaded.place("metadata.name") for loaded in after.objects]
    assert places == ["f.yaml:5", "f.yaml:10", "f.yaml:15", "f.yaml:20"]


@pytest.mark.parametrize(("name", "line"), [("[", 11), ("'?'", 10)])
def test_a_mistake_in_one_of_many_documents_is_named_with_its_line(name: str, line: int) -> None:
    before = read_file("f.yaml", nodes("a", "b", "c"))
    [problem] = read_file("f.yaml", nodes("a", name, "c"), before).problems
    assert problem.line == line
