"""Who may come in to a local pod, however it comes: one question, asked in one place."""

from ztunnel.mesh.authorize import Verdict, authorize
from ztunnel.mesh.connection import ConnectionAttributes
from ztunnel.mesh.workload import Workload
from ztunnel.proxy.context import Context
from ztunnel.telemetry.record import ConnectionRecord


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
