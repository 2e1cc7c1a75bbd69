"""What must be asked before it is decided where a connection goes: names, and the control plane."""

from collections.abc import Callable, Sequence
from typing import Final

from ztunnel.mesh.decision import Decision, NeedsDns, NeedsLookup
from ztunnel.mesh.workload import Workload
from ztunnel.proxy.context import Context
from ztunnel.telemetry.labels import UNKNOWN

_QUESTIONS: Final = 4  # names and keys asked for one connection


class Unanswered(Exception):
    """The control plane has said nothing of a key; the text is for the connection's log line."""

    def __init__(self, decision: NeedsLookup) -> None:
        super().__init__(
            f"{decision.reason}, and no answer about {decision.key} has come; is the control plane"
            " reachable?"
        )
        self.decision = decision


async def inquire(
    context: Context,
    source: Workload,
    decision: Decision,
    names: dict[str, Sequence[str]],
    decide: Callable[[str], Decision],
) -> Decision:
    """Gets what a decision needs, and decides again, until it needs nothing or has asked enough.

    Args:
        source: whose connection it is.
        names: addresses by hostname; what is resolved is put there.
        decide: decides with these, given the uid of the endpoint that a name was resolved for.

    Raises:
        Unanswered: what cannot be asked for is not passed through, for it may belong to the mesh.
    """
    prefer = ""
    for _ in range(_QUESTIONS):
        if isinstance(decision, NeedsDns):
            prefer = decision.workload.uid
            _count(context, source, decision.hostname)
            names[decision.hostname] = await context.resolve(decision.hostname)
        elif isinstance(decision, NeedsLookup):
            if not await context.look_up(decision.key):
                raise Unanswered(decision)
        else:
            break
        decision = decide(prefer)
    return decision


def _count(context: Context, source: Workload, hostname: str) -> None:
    known = (
        source.workload_name,
        source.canonical_name,
        source.canonical_revision,
        source.namespace,
        source.identity.uri,
        source.canonical_name,
        source.canonical_revision,
        source.cluster_id,
    )
    labels = (value or UNKNOWN for value in known)
    context.counters.counter("istio_on_demand_dns", *labels, hostname).add()
