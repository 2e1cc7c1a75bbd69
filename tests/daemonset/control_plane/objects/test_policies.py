"""Strict reading of the objects that guard something."""

from __future__ import annotations

import textwrap

import pytest

from daemonset.control_plane.sources.file_reader import read_file

POLICY = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop}
spec:
"""
PEER = POLICY.replace("AuthorizationPolicy", "PeerAuthentication")


def problems(head: str, spec: str) -> list[str]:
    text = head + textwrap.indent(textwrap.dedent(spec), "  ")
    found = read_file("f.yaml", text.encode()).problems
    return [f"{problem.line}: {problem.field}: {problem.message}" for problem in found]


@pytest.mark.parametrize(
    ("spec", "line", "field", "message"),
    [
        ("rule: [{}]", 5, "spec.rule", "not a field that is known"),
        ("rules: [{form: []}]", 5, "spec.rules[0].form", "not a field that is known"),
        ("rules: [{from: []}]", 5, "spec.rules[0].from", "must not be an empty list"),
        ("rules: [{to: []}]", 5, "spec.rules[0].to", "must not be an empty list"),
        ("rules: [{when: []}]", 5, "spec.rules[0].when", "must not be an empty list"),
        ("rules:\n- from:\n", 6, "spec.rules[0].from", "has no value"),
        ("rules:\n", 5, "spec.rules", "has no value"),
        ("rules: [{from: [{}]}]", 5, "spec.rules[0].from[0].source", "is missing"),
        (
            "rules: [{from: [{source: {}}]}]",
            5,
            "spec.rules[0].from[0].source",
            "needs at least one field",
        ),
        (
            "rules:\n- from:\n  - source: {principal: [a]}",
            7,
            "spec.rules[0].from[0].source.principal",
            "not a field that is known",
        ),
        (
            "rules: [{from: [{source: {principals: []}}]}]",
            5,
            "spec.rules[0].from[0].source.principals",
            "must not be an empty list",
        ),
        (
            "rules: [{from: [{source: {principals: ['']}}]}]",
            5,
            "spec.rules[0].from[0].source.principals",
            "empty string",
        ),
        (
            "rules: [{from: [{source: {principals: ['a*b']}}]}]",
            5,
            "spec.rules[0].from[0].source.principals",
            "begin or the end",
        ),
        (
            "rules: [{from: [{source: {namespaces: ['*a*']}}]}]",
            5,
            "spec.rules[0].from[0].source.namespaces",
            "both ends",
        ),
        (
            "rules: [{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}]",
            5,
            "spec.rules[0].from[0].source.ipBlocks",
            "neither an IP address nor a CIDR block",
        ),
        (
            "rules: [{from: [{source: {ipBlocks: ['::ffff:10.0.0.1']}}]}]",
            5,
            "spec.rules[0].from[0].source.ipBlocks",
            "write the IPv4 form",
        ),
        (
            "rules: [{from: [{source: {serviceAccounts: ['a/b/c']}}]}]",
            5,
            "spec.rules[0].from[0].source.serviceAccounts",
            "name or namespace/name",
        ),
        (
            "rules: [{from: [{source: {serviceAccounts: ['*']}}]}]",
            5,
            "spec.rules[0].from[0].source.serviceAccounts",
            "name or namespace/name",
        ),
        (
            "rules: [{to: [{operation: {ports: [80]}}]}]",
            5,
            "spec.rules[0].to[0].operation.ports[0]",
            "must be a string",
        ),
        (
            "rules: [{to: [{operation: {ports: ['0']}}]}]",
            5,
            "spec.rules[0].to[0].operation.ports",
            "not a port number",
        ),
        (
            "rules: [{to: [{operation: {ports: ['80-90']}}]}]",
            5,
            "spec.rules[0].to[0].operation.ports",
            "not a port number",
        ),
        (
            "rules: [{when: [{key: source.prinzipal, values: [a]}]}]",
            5,
            "spec.rules[0].when[0].key",
            "not a known attribute",
        ),
        (
            "rules: [{when: [{key: source.ip}]}]",
            5,
            "spec.rules[0].when[0].values",
            "values or notValues must be given",
        ),
        (
            "rules: [{when: [{key: source.ip, values: [a]}]}]",
            5,
            "spec.rules[0].when[0].values",
            "neither an IP address",
        ),
        ("action: deny", 5, "spec.action", "must be one of ALLOW, AUDIT, CUSTOM, DENY"),
        ("selector: {app: web}", 5, "spec.selector.app", "not a field that is known"),
        (
            "selector: {matchLabels: {app: 'w*'}}",
            5,
            "spec.selector.matchLabels",
            "wildcards are not supported",
        ),
        (
            "selector: {matchLabels: {a: b}}\ntargetRefs: [{kind: Service, name: a}]",
            6,
            "spec.targetRefs",
            "together with selector",
        ),
        (
            "targetRefs: [{kind: Service, name: a, namespace: other}]",
            5,
            "spec.targetRefs[0].namespace",
            "must be the namespace of the policy",
        ),
        ("targetRefs: [{kind: Service}]", 5, "spec.targetRefs[0].name", "is missing"),
    ],
)
def test_authorization_policies(spec: str, line: int, field: str, message: str) -> None:
    (problem,) = problems(POLICY, spec)
    assert problem.startswith(f"{line}: {field}: ")
    assert message in problem


def test_a_field_outside_of_spec_is_refused() -> None:
    text = POLICY.replace("spec:\n", "") + "rules: [{}]\n"
    (problem,) = read_file("f.yaml", text.encode()).problems
    assert problem.field == "rules"


def test_a_dry_run_that_is_neither_true_nor_false_is_refused() -> None:
    head = POLICY.replace(
        "namespace: shop}", "namespace: shop, annotations: {istio.io/dry-run: 'yes'}}"
    )
    (problem,) = problems(head, "rules: [{}]")
    assert "must be true or false" in problem


@pytest.mark.parametrize(
    ("spec", "field", "message"),
    [
        ("mtls: {mode: strict}", "spec.mtls.mode", "must be one of"),
        ("mtls: {mode: STRICT, x: 1}", "spec.mtls.x", "not a field that is known"),
        ("mtls:\n", "spec.mtls", "has no value"),
        ("mTLS: {mode: STRICT}", "spec.mTLS", "not a field that is known"),
        ("portLevelMtls: {80: {mode: STRICT}}", "spec.portLevelMtls", "needs a selector"),
        (
            "selector: {matchLabels: {a: b}}\nportLevelMtls: {http: {mode: STRICT}}",
            "spec.portLevelMtls.http",
            "not a port number",
        ),
        (
            "selector: {matchLabels: {a: b}}\nportLevelMtls: {80: STRICT}",
            "spec.portLevelMtls.80",
            "must be a mapping",
        ),
    ],
)
def test_peer_authentications(spec: str, field: str, message: str) -> None:
    (problem,) = problems(PEER, spec)
    assert f": {field}: " in problem
    assert message in problem
