"""Who may come in to a local pod, and may stay: one question, asked in one place, however they
come."""

from typing import Final

from ztunnel.mesh.authorize import Verdict, authorize
from ztunnel.mesh.connection import ConnectionAttributes
from ztunnel.mesh.workload import Workload
from ztunnel.proxy.context import Context
from ztunnel.proxy.registry import Live
from ztunnel.telemetry.labels import DENY
from ztunnel.telemetry.record import ConnectionRecord

POLICY_CHANGED: Final = "connection closed due to policy change"


def admit(
    context: Context,
    record: ConnectionRecord,
    workload: Workload,
    attributes: ConnectionAttributes,
) -> Verdict:
    """What the policies of `workload` say of a new connection; noted in its record, and counted."""
    verdict = authorize(context.state, workload, attributes)
    record.verdict = verdict.reason
    record.policy = verdict.policy
    if verdict.dry_run:
        context.dry_run(verdict)
    context.judged(verdict)
    return verdict


def judge_again(
    context: Context,
    connection: Live,
    workload: Workload | None,
    attributes: ConnectionAttributes,
) -> None:
    """Ends a live connection to `workload`, as it is now, if its policies no longer allow it; and
    if it is None, which says that the workload is gone."""
    if workload is None:
        context.revoked("workload")
        connection.end(DENY, f"{POLICY_CHANGED}: the workload is gone from the mesh")
        return
    verdict = authorize(context.state, workload, attributes)
    connection.record.verdict = verdict.reason
    connection.record.policy = verdict.policy
    if not verdict.allowed:
        context.judged(verdict)
        context.revoked("policy")
        connection.end(DENY, f"{POLICY_CHANGED}: {verdict.reason}")
