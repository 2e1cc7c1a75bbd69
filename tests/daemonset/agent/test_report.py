"""What an agent says of its node survives being written down, and nothing else is taken for it."""

import contextlib
import json

from hypothesis import given
from hypothesis import strategies as st

from daemonset.agent.report import (
    MOST_PODS,
    Chain,
    Feature,
    NodeReport,
    Trouble,
    make_report,
    read_report,
    report_text,
)
from daemonset.agent.status import AgentStatus, PodState, PodStatus

texts = st.text(max_size=20)
reports = st.builds(
    NodeReport,
    texts,
    st.lists(st.builds(Feature, texts, st.booleans(), st.booleans(), texts)).map(tuple),
    st.none() | st.builds(Chain, texts, st.lists(texts).map(tuple), texts),
    st.integers(),
    st.booleans(),
    texts,
    st.dictionaries(texts, st.integers()),
    st.lists(st.builds(Trouble, texts, texts, texts)).map(tuple),
    texts,
    st.lists(texts).map(tuple),
)


@given(reports)
def test_what_is_written_is_read(report: NodeReport) -> None:
    assert read_report(report_text(report)) == report


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | texts,
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.sampled_from(["version", "features", "chain", "pods"]), inner)
        ),
    ).map(json.dumps)
    | texts
)
def test_anything_else_is_no_report(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(read_report(text).version, str)


def test_fields_of_later_versions_are_passed_over() -> None:
    data = json.loads(report_text(NodeReport("1")))
    assert read_report(json.dumps({**data, "later": 1})) == NodeReport("1")


def test_a_report_counts_all_pods_and_names_those_in_trouble() -> None:
    pods = tuple(
        PodStatus(str(number), f"p{number}", "shop", state, "because")
        for number, state in enumerate([PodState.ENROLLED, *[PodState.PENDING] * 50])
    )
    report = make_report("1", AgentStatus(1, True, "", pods), (), None)
    assert report.pods == {"enrolled": 1, "pending": 50}
    assert len(report.troubles) == MOST_PODS
    assert report.troubles[0] == Trouble("shop/p1", "pending", "because")
