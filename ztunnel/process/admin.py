"""What the admin server tells of the control process."""

from collections.abc import Iterable
from typing import Any, Protocol

from ztunnel.config import Config
from ztunnel.mesh.service import Service
from ztunnel.mesh.state import MeshState
from ztunnel.process.certificate_desk import CertificateDesk
from ztunnel.process.local_mesh import LocalMesh
from ztunnel.process.worker_link import WorkerLink
from ztunnel.telemetry.admin import AdminSources, PodState
from ztunnel.telemetry.certificate_dump import certificates
from ztunnel.telemetry.log_filter import LogFilter
from ztunnel.zds.client import ZdsClient
from ztunnel.zds.messages import WorkloadInfo


class Administered(Protocol):
    """The control process, as far as the admin server looks into it."""

    config: Config
    state: MeshState
    certificates: CertificateDesk
    zds: ZdsClient
    local: LocalMesh
    workers: dict[int, WorkerLink]
    log_filter: LogFilter

    async def connections(self) -> list[dict[str, Any]]:
        """Live connections of all workers."""

    def set_log_filter(self, chosen: LogFilter) -> None:
        """Changes what is logged."""

    def request_shutdown(self) -> None:
        """Ends the whole ztunnel in order."""


def admin_sources(control: Administered) -> AdminSources:
    """The admin server's view of the process."""

    def services() -> Iterable[Service]:
        return [r.service for r in control.state.services if r.service is not None]

    def held_certificates() -> list[dict[str, Any]]:
        found = []
        for state in control.certificates.manager.states():
            held = state.certificate
            found.append(
                certificates(
                    state.identity.uri,
                    state.phase if state.error is None else f"{state.phase}: {state.error}",
                    held.chain_pem if held is not None else b"",
                    held.roots_pem if held is not None else b"",
                )
            )
        return found

    def pods() -> list[PodState]:
        state = control.zds.state
        return [
            *(PodState(uid, "Up", _info(info)) for uid, info in state.running.items()),
            *(
                PodState(uid, "Pending", {**_info(info), "reason": reason})
                for uid, (info, reason) in state.pending.items()
            ),
        ]

    return AdminSources(
        workloads=lambda: control.state.workloads,
        services=services,
        policies=control.state.policies,
        certificates=held_certificates,
        pods=pods,
        connections=control.connections,
        config=control.config.to_json(),
        kernel_paths=lambda: {one.name: one.kernel_paths for one in control.workers.values()},
        static_config=lambda: control.local.loaded,
        get_log_filter=lambda: control.log_filter,
        set_log_filter=control.set_log_filter,
        initial_log_filter=control.log_filter,
        quit=control.request_shutdown,
    )


def _info(info: WorkloadInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "namespace": info.namespace,
        "serviceAccount": info.service_account,
    }
