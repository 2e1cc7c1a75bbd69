import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemonset.agent.enrolment import (
    BYPASS_INBOUND_ANNOTATION,
    DNS_ANNOTATION,
    MODE_LABEL,
    REROUTE_ANNOTATION,
    EnrolmentOptions,
    SelectorError,
    decide_enrolment,
    parse_selectors,
)
from daemonset.agent.pods import Pod

OPTIONS = EnrolmentOptions()
POD = Pod("uid", "web-1", "shop", "web", ("10.0.0.1",))
AMBIENT = {MODE_LABEL: "ambient"}
IN_AMBIENT_NAMESPACE = replace(POD, namespace_labels=AMBIENT)


@pytest.mark.parametrize(
    ("pod_mode", "namespace_mode", "enrolled"),
    [
        (None, None, False),
        (None, "ambient", True),
        (None, "none", False),
        (None, "sidecar", False),
        ("ambient", None, True),
        ("ambient", "none", True),
        ("none", "ambient", False),
        ("none", None, False),
        # What nobody has heard of counts as nothing said: it neither opts in nor out.
        ("sidecar", None, False),
        ("sidecar", "ambient", True),
    ],
)
def test_the_pods_label_beats_the_namespaces(
    pod_mode: str | None, namespace_mode: str | None, enrolled: bool
) -> None:
    pod = replace(
        POD,
        labels={MODE_LABEL: pod_mode} if pod_mode else {},
        namespace_labels={MODE_LABEL: namespace_mode} if namespace_mode else {},
    )
    decision = decide_enrolment(pod, OPTIONS)
    assert decision.enrolled is enrolled
    assert decision.reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"host_network": True}, "it uses the node's own network (hostNetwork)"),
        (
            {"annotations": {"sidecar.istio.io/status": "{}"}},
            "it has a sidecar (annotation sidecar.istio.io/status)",
        ),
        ({"namespace": "kube-system"}, "namespace kube-system is excluded"),
        (
            {"namespace": "istio-system", "labels": {"app": "ztunnel", **AMBIENT}},
            "it is ztunnel itself",
        ),
        ({"phase": "Succeeded"}, "it has ended (Succeeded)"),
        ({"phase": "Failed"}, "it has ended (Failed)"),
        ({"labels": {MODE_LABEL: "none"}}, "its label istio.io/dataplane-mode is none"),
        ({"namespace_labels": {}}, "neither its labels nor its namespace's ask for it"),
    ],
)
def test_what_keeps_a_pod_out(change: dict[str, Any], reason: str) -> None:
    decision = decide_enrolment(replace(IN_AMBIENT_NAMESPACE, **change), OPTIONS)
    assert not decision.enrolled
    assert decision.reason == reason


def test_a_pod_called_ztunnel_elsewhere_is_a_pod_like_any_other() -> None:
    pod = replace(IN_AMBIENT_NAMESPACE, labels={"app": "ztunnel"})
    assert decide_enrolment(pod, OPTIONS).enrolled


def test_the_reason_names_what_matched() -> None:
    assert decide_enrolment(IN_AMBIENT_NAMESPACE, OPTIONS).reason == (
        "pod labels match istio.io/dataplane-mode NotIn (none) and "
        "namespace labels match istio.io/dataplane-mode=ambient"
    )


@pytest.mark.parametrize(
    ("annotations", "by_default", "dns"),
    [
        ({}, True, True),
        ({}, False, False),
        ({DNS_ANNOTATION: "false"}, True, False),
        ({DNS_ANNOTATION: "true"}, False, True),
    ],
)
def test_dns_capture(annotations: Mapping[str, str], by_default: bool, dns: bool) -> None:
    pod = replace(IN_AMBIENT_NAMESPACE, annotations=annotations)
    assert decide_enrolment(pod, EnrolmentOptions(dns_capture=by_default)).dns is dns


def test_annotations_say_what_is_captured() -> None:
    annotations = {BYPASS_INBOUND_ANNOTATION: "true", REROUTE_ANNOTATION: "net1, net2,"}
    decision = decide_enrolment(replace(IN_AMBIENT_NAMESPACE, annotations=annotations), OPTIONS)
    assert not decision.inbound
    assert decision.reroute_interfaces == ("net1", "net2")
    assert decision.notes == ()


def test_annotations_that_make_no_sense_capture_everything_and_are_noted() -> None:
    annotations = {BYPASS_INBOUND_ANNOTATION: "yes", REROUTE_ANNOTATION: "x" * 16}
    decision = decide_enrolment(replace(IN_AMBIENT_NAMESPACE, annotations=annotations), OPTIONS)
    assert decision.inbound
    assert decision.reroute_interfaces == ()
    assert len(decision.notes) == 2


def test_selectors_are_ored_and_their_halves_anded() -> None:
    selectors = parse_selectors(
        """
        - podSelector: {matchLabels: {a: "1"}}
        - podSelector:
            matchExpressions:
            - {key: b, operator: Exists}
          namespaceSelector: {matchLabels: {n: "1"}}
        """
    )
    options = EnrolmentOptions(selectors)
    assert decide_enrolment(replace(POD, labels={"a": "1"}), options).enrolled
    assert not decide_enrolment(replace(POD, labels={"b": "1"}), options).enrolled
    both = replace(POD, labels={"b": "1"}, namespace_labels={"n": "1"})
    decision = decide_enrolment(both, options)
    assert decision.reason == "pod labels match b Exists and namespace labels match n=1"
    assert decide_enrolment(both, options).enrolled


def test_an_empty_selector_selects_everything_and_no_selector_nothing() -> None:
    everything = EnrolmentOptions(parse_selectors("[{}]"))
    assert decide_enrolment(POD, everything).reason == "every pod is selected"
    nothing = EnrolmentOptions(parse_selectors("[]"))
    assert not decide_enrolment(IN_AMBIENT_NAMESPACE, nothing).enrolled


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "one YAML list is expected, not 0 documents"),
        ("{}", "selectors: must be a list, not a mapping"),
        ("- podSelectors: {}", r"selectors\[0\].podSelectors: is not a field"),
        ("- podSelector: {labels: {}}", r"podSelector.labels: is not a field"),
        ("- podSelector: {matchLabels: {a: 1}}", "must be a string"),
        ("- podSelector: {matchExpressions: [{operator: In}]}", "In needs at least one value"),
        ("- podSelector: {matchExpressions: [{key: a, operator: Gt}]}", "must be one of"),
        ("- [", "did not find expected node content"),
        ("- podSelector:", "has no value"),
    ],
)
def test_selectors_that_cannot_be_understood_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(SelectorError, match=complaint):
        parse_selectors(text)


words = st.sampled_from(
    ["podSelector", "namespaceSelector", "matchLabels", "matchExpressions", "key", "operator", "In"]
)
values = st.recursive(
    st.none() | st.booleans() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=10,
)


@given(st.lists(values).map(json.dumps) | st.text())
def test_any_text_is_selectors_or_a_selector_error(text: str) -> None:
    try:
        selectors = parse_selectors(text)
    except SelectorError:
        return
    decide_enrolment(POD, EnrolmentOptions(selectors))
