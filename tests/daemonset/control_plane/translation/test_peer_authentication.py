"""PeerAuthentication -> Authorization."""

from __future__ import annotations

import pytest
from google.protobuf import text_format

from tests.support.control_plane import AMBIENT_SHOP, Translated, translate

POD = """
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
status: {podIP: 10.0.0.1}
---
"""
STATIC = "istio-system/istio_converted_static_strict"


def peer(namespace: str, spec: str, name: str = "p", created: str = "") -> str:
    time = f", creationTimestamp: '{created}'" if created else ""
    return f"""
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: {name}, namespace: {namespace}{time}}}
spec: {spec}
---
"""


def mesh(*policies: str) -> Translated:
    return translate(AMBIENT_SHOP + POD + "".join(policies))


def attached(*policies: str) -> list[str]:
    return list(mesh(*policies).workload("web").authorization_policies)


STRICT, PERMISSIVE = "{mtls: {mode: STRICT}}", "{mtls: {mode: PERMISSIVE}}"
DISABLE, UNSET = "{mtls: {mode: DISABLE}}", "{mtls: {mode: UNSET}}"


def selecting(mode: str, ports: str = "") -> str:
    extra = f", portLevelMtls: {ports}" if ports else ""
    return f"{{selector: {{matchLabels: {{app: web}}}}, mtls: {{mode: {mode}}}{extra}}}"


def lines(result: Translated, name: str) -> str:
    return text_format.MessageToString(result.policy(name), as_one_line=True).strip()


def test_the_static_policy_is_always_there() -> None:
    assert lines(mesh(), STATIC) == (
        'name: "istio_converted_static_strict" namespace: "istio-system" '
        "scope: WORKLOAD_SELECTOR action: DENY "
        "groups { rules { matches { not_principals { presence { } } } } }"
    )


@pytest.mark.parametrize(
    ("policies", "strict"),
    [
        ([], False),
        ([peer("istio-system", STRICT)], True),
        ([peer("istio-system", STRICT), peer("shop", PERMISSIVE)], False),
        ([peer("istio-system", STRICT), peer("shop", DISABLE)], False),
        ([peer("istio-system", STRICT), peer("shop", UNSET)], True),
        ([peer("istio-system", STRICT), peer("shop", "{}")], True),
        ([peer("istio-system", PERMISSIVE), peer("shop", STRICT)], True),
        ([peer("shop", STRICT), peer("shop", selecting("PERMISSIVE"), "q")], False),
        ([peer("shop", STRICT), peer("shop", selecting("UNSET"), "q")], True),
        ([peer("shop", PERMISSIVE), peer("shop", selecting("STRICT"), "q")], True),
        ([peer("other", STRICT)], False),
        ([peer("other", selecting("STRICT"))], False),
    ],
)
def test_the_nearest_policy_that_says_something_holds(policies: list[str], strict: bool) -> None:
    assert attached(*policies) == ([STATIC] if strict else [])


def test_a_selector_in_the_root_namespace_is_ignored_and_reported() -> None:
    result = mesh(peer("istio-system", selecting("STRICT")))
    assert list(result.workload("web").authorization_policies) == []
    assert result.reasons == ["SelectorInRootNamespace"]


def test_among_equals_the_oldest_holds() -> None:
    new = peer("shop", STRICT, "a", "2026-02-01T00:00:00Z")
    old = peer("shop", PERMISSIVE, "b", "2026-01-01T00:00:00Z")
    for policies in ((new, old), (old, new)):
        result = mesh(*policies)
        assert list(result.workload("web").authorization_policies) == []
        assert [(str(f.object), f.reason) for f in result.findings] == [
            ("PeerAuthentication shop/a", "OlderPolicyHolds")
        ]


CONVERTED = "shop/converted_peer_authentication_p"


def test_strict_ports_are_or_ed() -> None:
    """Regression seed 1: AND over several strict ports made all of them permissive."""
    result = mesh(peer("shop", selecting("PERMISSIVE", "{80: {mode: STRICT}, 81: {mode: STRICT}}")))
    assert list(result.workload("web").authorization_policies) == [CONVERTED]
    assert lines(result, CONVERTED).endswith(
        "action: DENY "
        "groups { rules { matches { not_principals { presence { } } destination_ports: 80 } } } "
        "groups { rules { matches { not_principals { presence { } } destination_ports: 81 } } }"
    )


def test_permissive_ports_are_exceptions_of_strict() -> None:
    """Regression seed 2: too strict on other ports, and not strict at all on the rest."""
    result = mesh(
        peer("istio-system", STRICT),
        peer("shop", selecting("UNSET", "{80: {mode: PERMISSIVE}, 81: {mode: DISABLE}}")),
    )
    # The static policy would take the exceptions back.
    assert list(result.workload("web").authorization_policies) == [CONVERTED]
    assert lines(result, CONVERTED).endswith(
        "action: DENY groups { "
        "rules { matches { not_principals { presence { } } } } "
        "rules { matches { not_destination_ports: 80 } } "
        "rules { matches { not_destination_ports: 81 } } }"
    )


@pytest.mark.parametrize(
    ("top", "ports", "expected"),
    [
        ("STRICT", "{80: {mode: STRICT}}", [STATIC]),
        ("STRICT", "{80: {mode: UNSET}}", [STATIC]),
        ("PERMISSIVE", "{80: {mode: PERMISSIVE}}", []),
        ("PERMISSIVE", "{80: {}}", []),
    ],
)
def test_ports_that_say_the_same_change_nothing(top: str, ports: str, expected: list[str]) -> None:
    assert attached(peer("shop", selecting(top, ports))) == expected
