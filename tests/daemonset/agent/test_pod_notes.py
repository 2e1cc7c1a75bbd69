import pytest

from daemonset.agent.pod_notes import annotation
from daemonset.agent.status import PodState, PodStatus


@pytest.mark.parametrize(
    ("state", "present", "wanted"),
    [
        (PodState.ENROLLED, None, "enabled"),
        (PodState.ENROLLED, "pending", "enabled"),
        (PodState.NOT_IN_MESH, "enabled", None),
        (PodState.NOT_IN_MESH, None, None),
        (PodState.PENDING, None, "pending"),
        (PodState.PENDING, "pending", "pending"),
        # An agent that was restarted: its ztunnel serves the pod all the while.
        (PodState.PENDING, "enabled", "enabled"),
        (PodState.ENROLLING, "enabled", "enabled"),
        (PodState.ENROLLING, None, None),
        (PodState.STOPPED, "enabled", "enabled"),
        (PodState.FAILED, None, None),
        # Others are told first, so that nobody comes through a tunnel any more.
        (PodState.LEAVING, "enabled", None),
    ],
)
def test_the_annotation_follows_the_state(
    state: PodState, present: str | None, wanted: str | None
) -> None:
    status = PodStatus("1", "web", "shop", state, "as the test wants it")
    assert annotation(status, present) == wanted
