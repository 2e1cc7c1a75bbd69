"""AuthorizationPolicy -> Authorization, and what becomes of what L4 cannot check."""

from __future__ import annotations

import textwrap

import pytest
from google.protobuf import text_format

from tests.support.control_plane import Translated, translate
from ztunnel.proto.authorization_pb2 import Action, Authorization, Match, Scope

POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {namespace: shop, name: p%s}
spec:
"""


def policy(
    spec: str, more: str = "", *, like_istio: bool = False, annotations: str = ""
) -> Translated:
    text = POLICY % annotations + textwrap.indent(textwrap.dedent(spec), "  ") + more
    return translate(text, like_istio=like_istio)


def message(spec: str, **settings: bool) -> Authorization:
    return policy(spec, **settings).policy("shop/p")  # type: ignore[arg-type]


def clauses(converted: Authorization) -> list[list[list[str]]]:
    """Groups, their clauses, and each match as one line of text."""
    return [
        [
            [text_format.MessageToString(match, as_one_line=True).strip() for match in rule.matches]
            for rule in group.rules
        ]
        for group in converted.groups
    ]


def test_every_field_that_l4_can_check() -> None:
    converted = message(
        """
        action: DENY
        rules:
        - from:
          - source:
              principals: ["cluster.local/ns/a/sa/b", "*", "cluster.local/ns/c/*", "*/sa/d"]
              notPrincipals: ["x"]
              namespaces: ["a"]
              notNamespaces: ["b*"]
              ipBlocks: ["10.0.0.0/8", "192.0.2.1", "fd00::/8"]
              notIpBlocks: ["10.1.2.3/16"]
              serviceAccounts: ["own", "other/sa"]
              notServiceAccounts: ["third/sa"]
          - source: {namespaces: [z]}
          to:
          - operation: {ports: ["80", "443"], notPorts: ["81"]}
          when:
          - {key: source.ip, values: ["1.2.3.4"], notValues: ["1.2.3.5"]}
          - {key: source.namespace, values: [n]}
          - {key: source.principal, notValues: ["*"]}
          - {key: destination.ip, values: ["5.6.7.0/24"]}
          - {key: destination.port, notValues: ["9"]}
        """
    )
    assert (
        text_format.MessageToString(converted)
        == textwrap.dedent(
            r"""
        name: "p"
        namespace: "shop"
        scope: NAMESPACE
        action: DENY
        groups {
          rules {
            matches {
              destination_ports: 80
              destination_ports: 443
              not_destination_ports: 81
            }
          }
          rules {
            matches {
              namespaces {
                exact: "a"
              }
              not_namespaces {
                prefix: "b"
              }
              principals {
                exact: "cluster.local/ns/a/sa/b"
              }
              principals {
                presence {
                }
              }
              principals {
                prefix: "cluster.local/ns/c/"
              }
              principals {
                suffix: "/sa/d"
              }
              not_principals {
                exact: "x"
              }
              source_ips {
                address: "\n\000\000\000"
                length: 8
              }
              source_ips {
                address: "\300\000\002\001"
                length: 32
              }
              source_ips {
                address: "\375\000\000\000\000\000\000\000\000\000\000\000\000\000\000\000"
                length: 8
              }
              not_source_ips {
                address: "\n\001\000\000"
                length: 16
              }
              service_accounts {
                namespace: "shop"
                service_account: "own"
              }
              service_accounts {
                namespace: "other"
                service_account: "sa"
              }
              not_service_accounts {
                namespace: "third"
                service_account: "sa"
              }
            }
            matches {
              namespaces {
                exact: "z"
              }
            }
          }
          rules {
            matches {
              source_ips {
                address: "\001\002\003\004"
                length: 32
              }
              not_source_ips {
                address: "\001\002\003\005"
                length: 32
              }
            }
          }
          rules {
            matches {
              namespaces {
                exact: "n"
              }
            }
          }
          rules {
            matches {
              not_principals {
                presence {
                }
              }
            }
          }
          rules {
            matches {
              destination_ips {
                address: "\005\006\007\000"
                length: 24
              }
            }
          }
          rules {
            matches {
              not_destination_ports: 9
            }
          }
        }
        """
        ).lstrip()
    )


def test_a_policy_without_rules_allows_nothing() -> None:
    converted = message("{}")
    assert (converted.action, list(converted.groups)) == (Action.ALLOW, [])


def test_an_empty_rule_covers_everything() -> None:
    assert clauses(message("rules: [{}]")) == [[]]


def test_a_deny_policy_without_rules_is_a_finding() -> None:
    assert policy("action: DENY").reasons == ["NoRules"]


@pytest.mark.parametrize(
    ("selector", "namespace", "scope"),
    [
        ("", "shop", Scope.NAMESPACE),
        ("selector: {}", "shop", Scope.NAMESPACE),
        ("", "istio-system", Scope.GLOBAL),
        ("selector: {matchLabels: {app: web}}", "shop", Scope.WORKLOAD_SELECTOR),
        ("selector: {matchLabels: {app: web}}", "istio-system", Scope.WORKLOAD_SELECTOR),
    ],
)
def test_scopes(selector: str, namespace: str, scope: int) -> None:
    text = POLICY % "" + f"  rules: [{{}}]\n  {selector}\n"
    result = translate(text.replace("namespace: shop", f"namespace: {namespace}"))
    assert result.policy(f"{namespace}/p").scope == scope


L7_ELEMENTS = [
    ("to", "operation: {methods: [GET]}"),
    ("to", "operation: {paths: [/a]}"),
    ("to", "operation: {hosts: [a]}"),
    ("to", "operation: {notMethods: [GET]}"),
    ("from", 'source: {requestPrincipals: ["*"]}'),
    ("from", 'source: {remoteIpBlocks: ["1.2.3.4"]}'),
    ("when", "key: request.headers[x]\n    values: [y]"),
    ("when", "key: source.serviceAccount\n    values: [y]"),
    ("when", "key: connection.sni\n    values: [y]"),
]


@pytest.mark.parametrize(("clause", "element"), L7_ELEMENTS)
def test_an_allow_rule_with_anything_l7_allows_nobody(clause: str, element: str) -> None:
    spec = f"rules:\n- {clause}:\n  - {element}\n- from:\n  - source: {{namespaces: [a]}}\n"
    result = policy(spec)
    assert clauses(result.policy("shop/p")) == [[['namespaces { exact: "a" }']]]
    assert result.reasons == ["UnsupportedValue"]
    assert result.findings[0].field.startswith(f"spec.rules[0].{clause}[0]")
    alone = policy(f"rules:\n- {clause}:\n  - {element}\n").policy("shop/p")
    assert (alone.action, list(alone.groups)) == (Action.ALLOW, [])


@pytest.mark.parametrize(("clause", "element"), L7_ELEMENTS)
def test_a_deny_rule_of_l7_alone_refuses_everybody(clause: str, element: str) -> None:
    result = policy(f"action: DENY\nrules:\n- {clause}:\n  - {element}\n")
    assert clauses(result.policy("shop/p")) == [[]]
    assert result.reasons == ["UnsupportedValue"]
    assert "refuses everybody" in result.findings[0].message


def no_empty_match(converted: Authorization) -> bool:
    return all(
        match != Match()
        for group in converted.groups
        for rule in group.rules
        for match in rule.matches
    )


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        # An element that keeps an L4 part refuses more.
        (
            "{from: [{source: {namespaces: [x], requestPrincipals: ['*']}}]}",
            [[['namespaces { exact: "x" }']]],
        ),
        (
            "{to: [{operation: {ports: ['80'], methods: [GET]}}]}",
            [[["destination_ports: 80"]]],
        ),
        # Regression seed 4: these were silent no-ops.
        (
            "{from: [{source: {namespaces: [x]}}], to: [{operation: {methods: [GET]}}]}",
            [[['namespaces { exact: "x" }']]],
        ),
        (
            "{when: [{key: source.namespace, values: [x]}, {key: connection.sni, values: [y]}]}",
            [[['namespaces { exact: "x" }']]],
        ),
        # One element that L4 cannot see makes its whole clause true: the others must not narrow it.
        (
            "{from: [{source: {namespaces: [x]}}], "
            "to: [{operation: {ports: ['80']}}, {operation: {methods: [GET]}}]}",
            [[['namespaces { exact: "x" }']]],
        ),
    ],
)
def test_a_deny_rule_refuses_more_rather_than_less(rule: str, kept: list[object]) -> None:
    result = policy(f"action: DENY\nrules: [{rule}]")
    converted = result.policy("shop/p")
    assert clauses(converted) == kept
    assert no_empty_match(converted)
    assert "refuses more than it says" in result.findings[0].message


def test_like_istio_a_deny_rule_with_an_l7_clause_refuses_nobody() -> None:
    rule = "{from: [{source: {namespaces: [x]}}], to: [{operation: {methods: [GET]}}]}"
    result = policy(f"action: DENY\nrules: [{rule}]", like_istio=True)
    assert clauses(result.policy("shop/p")) == [[[""], ['namespaces { exact: "x" }']]]
    assert "refuses nobody" in result.findings[0].message


def test_audit_is_a_finding_and_nothing_else() -> None:
    result = policy("{action: AUDIT, rules: [{}]}")
    assert "shop/p" not in result.raw.authorizations
    assert [(f.reason, f.severity.name) for f in result.findings] == [
        ("UnsupportedValue", "WARNING")
    ]


def test_custom_refuses_what_its_rules_cover() -> None:
    spec = (
        "action: CUSTOM\nprovider: {name: oauth}\n"
        "rules: [{to: [{operation: {ports: ['80'], paths: [/admin]}}]}]"
    )
    result = policy(spec)
    converted = result.policy("shop/p")
    assert (converted.action, clauses(converted)) == (Action.DENY, [[["destination_ports: 80"]]])
    assert [finding.severity.name for finding in result.findings] == ["ERROR", "ERROR"]
    assert "shop/p" not in policy(spec, like_istio=True).raw.authorizations


def test_dry_run_is_passed_on() -> None:
    annotations = ", annotations: {istio.io/dry-run: 'true'}"
    assert policy("rules: [{}]", annotations=annotations).policy("shop/p").dry_run
