"""Configuration of other control planes."""

from __future__ import annotations

import pytest

from tests.support.control_plane import translate

TEXT = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop, labels: LABELS}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: e, namespace: shop, labels: LABELS}
spec: {hosts: [e.example], ports: [{number: 1, name: tcp}]}
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: w, namespace: shop, labels: LABELS}
spec: {address: 192.0.2.1}
---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: shop, labels: LABELS}
status: {podIP: 10.0.0.1}
"""


@pytest.mark.parametrize(
    ("labels", "revision", "ours"),
    [
        ("{}", "default", True),
        ("{istio.io/rev: ''}", "canary", True),
        ("{istio.io/rev: canary}", "canary", True),
        ("{istio.io/rev: canary}", "default", False),
        ("{istio.io/rev: default}", "canary", False),
    ],
)
def test_configuration_with_another_revision_is_left_out_and_said(
    labels: str, revision: str, ours: bool
) -> None:
    result = translate(TEXT.replace("LABELS", labels), revision=revision)
    assert ("shop/p" in result.raw.authorizations) == ours
    assert ("shop/e.example" in result.raw.addresses) == ours
    assert result.reasons.count("OtherRevision") == (0 if ours else 3)
    assert result.workload("Pod/shop/a").name == "a"
