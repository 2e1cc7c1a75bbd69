from daemonset.agent.status import AgentStatus, PodState, PodStatus
from daemonset.local.node_agent import captured_now


def status(**states: PodState) -> AgentStatus:
    pods = tuple(
        PodStatus(f"uid-{name}", name, "shop", state, "") for name, state in states.items()
    )
    return AgentStatus(1, True, "", pods)


def test_a_pod_is_captured_once_it_is_enrolled() -> None:
    nobody: frozenset[str] = frozenset()
    assert captured_now(nobody, status(web=PodState.ENROLLING)) == nobody
    assert captured_now(nobody, status(web=PodState.PENDING)) == nobody
    assert captured_now(nobody, status(web=PodState.ENROLLED)) == {"shop/web"}


def test_a_captured_pod_stays_so_while_something_is_wrong() -> None:
    before = frozenset({"shop/web"})
    for state in (PodState.PENDING, PodState.STOPPED, PodState.FAILED, PodState.ENROLLING):
        assert captured_now(before, status(web=state)) == before


def test_a_pod_that_leaves_or_is_gone_is_not_captured() -> None:
    before = frozenset({"shop/web"})
    assert captured_now(before, status(web=PodState.LEAVING)) == frozenset()
    assert captured_now(before, status(web=PodState.NOT_IN_MESH)) == frozenset()
    assert captured_now(before, status()) == frozenset()
