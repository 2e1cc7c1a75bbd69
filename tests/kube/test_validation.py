"""The admission policies against the real API server, with what the offline validator is asked."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import pytest

from tests.daemonset.control_plane.test_admission_cases import judge
from tests.support.admission_cases import (
    CASES,
    NAMESPACE,
    Case,
    Json,
    Verdict,
    entry,
    operation,
    source,
    when,
)
from tests.support.kube.admission import PATIENCE, ask, put_in_force
from tests.support.kube.cluster import ApiFailure, Cluster
from tests.support.kube.manifests import MANIFESTS, read_base
from tests.support.kube.objects import policy

VALIDATION = read_base(MANIFESTS / "validation")


@pytest.fixture(scope="module")
def guarded(cluster: Cluster) -> Cluster:
    """An API server with the definitions and the policies, in force."""
    put_in_force(cluster)
    return cluster


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_api_server_agrees(guarded: Cluster, case: Case) -> None:
    answer = ask(guarded, case.object)
    assert answer.verdict is case.verdict, answer.words
    # Words for people, not the failure of an expression.
    assert "resulted in error" not in answer.words, answer.words
    assert "failed expression" not in answer.words, answer.words
    if case.verdict is Verdict.REFUSED:
        assert ("ValidatingAdmissionPolicy 'ambient-" in answer.words) is not case.by_type, (
            answer.words
        )


def values(seed: int, alphabet: list[str], number: int) -> list[str]:
    """Strings of a few pieces each, none of them empty."""
    rng = random.Random(seed)
    made = {"".join(rng.choices(alphabet, k=rng.randint(1, 5))) for _ in range(number)}
    return sorted(text for text in made if text)


DIGITS = ["0", "1", "9", "10", "255", "256", "65535", "6553", "80", "+", "-", " ", "٣", "_", "a"]
ADDRESSES = [
    "10",
    "10.",
    "0.",
    "255",
    "256",
    "::",
    ":",
    "fd00",
    "/",
    "/8",
    "/32",
    "/128",
    "/0",
    "/08",
]
ADDRESSES += ["%eth0", "::ffff:", "10.0.0.1", "1.2.3.4", " "]
NAMES = ["a", "B", "-", ".", "*", "/", "_", "1", "*.", "é", " ", "ns/", "\t"]
KEYS = [
    "source.",
    "ip",
    "remote.ip",
    "request.",
    "headers",
    "[a]",
    "[",
    "]",
    "destination.",
    "port",
]
KEYS += ["request.auth.claims", "request.auth.principal", "experimental.envoy.filters.", "x", " "]


@pytest.mark.parametrize(
    ("kind", "made", "build"),
    [
        ("AuthorizationPolicy", values(1, ADDRESSES, 90), lambda v: source(ipBlocks=[v])),
        ("AuthorizationPolicy", values(2, DIGITS, 60), lambda v: operation(ports=[v])),
        ("AuthorizationPolicy", values(3, NAMES, 60), lambda v: source(principals=[v])),
        ("AuthorizationPolicy", values(4, NAMES, 60), lambda v: source(serviceAccounts=[v])),
        ("AuthorizationPolicy", values(5, KEYS, 60), lambda v: when(v, "::1")),
        ("ServiceEntry", values(6, NAMES, 60), lambda v: entry(hosts=[v], resolution="NONE")),
        ("ServiceEntry", values(7, ADDRESSES, 60), lambda v: entry(addresses=[v])),
        (
            "ServiceEntry",
            values(8, [*ADDRESSES, *NAMES], 90),
            lambda v: entry(resolution="DNS", endpoints=[{"address": v}]),
        ),
        ("WorkloadEntry", values(9, [*ADDRESSES, *NAMES], 60), lambda v: {"address": v}),
    ],
    ids=[
        "blocks",
        "ports",
        "patterns",
        "accounts",
        "keys",
        "hosts",
        "addresses",
        "ends",
        "entries",
    ],
)
def test_both_read_values_alike(guarded: Cluster, kind: str, made: list[str], build: Any) -> None:
    [version] = {case.object["apiVersion"] for case in CASES if case.object["kind"] == kind}
    seen = set()
    for value in made:
        meta: Json = {"name": "case", "namespace": NAMESPACE, "labels": {}}
        item = {"apiVersion": version, "kind": kind, "metadata": meta, "spec": build(value)}
        ours, why = judge(item)
        answer = ask(guarded, item)
        assert answer.verdict is ours, (value, why, answer.words)
        seen.add(ours)
    assert {Verdict.REFUSED} < seen  # and some that are not


def test_the_mistake_is_named(guarded: Cluster) -> None:
    item = policy(NAMESPACE, "p", {"rules": [{}, *source(ipBlocks=["::1", "10.0.0.300"])["rules"]]})
    assert "neither an IP address nor a CIDR block: '10.0.0.300'" in ask(guarded, item).words
    item = policy(NAMESPACE, "p", {"action": "DENY", **operation(methods=["GET"], paths=["/"])})
    words = ask(guarded, item).words
    assert "cannot be checked without a waypoint: methods, paths." in words
    assert "deny more than they say" in words


def test_what_was_there_before_can_be_changed_but_for_its_mistakes(guarded: Cluster) -> None:
    """Finalizers must come off, labels go on: a policy with a mistake is no trap."""
    bindings = [item for item in VALIDATION if item["kind"] == "ValidatingAdmissionPolicyBinding"]
    [binding] = [
        one for one in bindings if one["metadata"]["name"] == "ambient-authorization-policy"
    ]
    bad = policy(NAMESPACE, "older", {"rule": [{}]})
    bad["metadata"]["finalizers"] = ["example.com/hold"]
    guarded.delete(binding)
    deadline = time.monotonic() + PATIENCE
    while ask(guarded, bad).verdict is Verdict.REFUSED:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    guarded.apply(bad)
    guarded.apply(binding)
    fresh = policy(NAMESPACE, "fresh", {"rule": [{}]})
    while ask(guarded, fresh).verdict is not Verdict.REFUSED:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    bad["metadata"]["labels"] = {"team": "a"}
    guarded.apply(bad)
    worse = {**bad, "spec": {"rule": [{}, {}]}}
    assert ask(guarded, worse).verdict is Verdict.REFUSED
    assert ask(guarded, {**bad, "spec": {"rules": [{}]}}).verdict is Verdict.FINE
    guarded.delete(bad)  # waits for its finalizer
    bad["metadata"]["finalizers"] = []
    guarded.apply(bad)
    with pytest.raises(ApiFailure, match="404"):
        guarded.call("GET", guarded.path(bad))


def test_a_large_policy_is_no_trouble(guarded: Cluster) -> None:
    """The API server limits what expressions may cost, and a policy that it cannot judge within
    the limit it would refuse."""
    account = "spiffe://cluster.local/ns/namespace-{0}/sa/account-{0}"
    rules = [
        {
            "from": [
                {
                    "source": {
                        "principals": [account.format(100 * n + k) for k in range(10)],
                        "ipBlocks": [f"10.{n % 256}.{k}.0/24" for k in range(10)],
                    }
                }
            ],
            "to": [{"operation": {"ports": [str(1 + n), str(20000 + n)]}}],
            "when": [{"key": "source.namespace", "values": [f"namespace-{n}"]}],
        }
        for n in range(512)
    ]
    item = policy(NAMESPACE, "large", {"selector": {"matchLabels": {"app": "a"}}, "rules": rules})
    assert len(json.dumps(item)) > 400_000
    answer = ask(guarded, item)
    assert answer.verdict is Verdict.FINE, answer.words
    rules[500]["to"] = [{"operation": {"ports": ["0"]}}]
    assert "not a port number: '0'" in ask(guarded, item).words
