"""What can be told about a node's certificates."""

from dataclasses import dataclass

from ztunnel.mesh.identity import Identity
from ztunnel.tls.workload_certificate import WorkloadCertificate


@dataclass(frozen=True, slots=True)
class CertificateState:
    """One identity, for the admin dump.

    Attributes:
        phase: `Initializing`, `Available`, or `Unavailable` with `error` telling why.
        certificate: the latest, even if it is expired or revoked.
        error: why the last attempt failed, or why the certificate is not used.
        failures: attempts that failed since the last success.
        renew_at: when the CA is asked next, seconds since the epoch.
    """

    identity: Identity
    phase: str
    certificate: WorkloadCertificate | None
    error: str | None
    failures: int
    renew_at: float


@dataclass(slots=True)
class CertificateStatistics:
    """Cumulative figures about requests to the CA, for metrics.

    Attributes:
        signed: certificates received.
        failed: requests that brought none.
        seconds: time spent waiting for the CA, in sum.
        in_flight: requests under way now.
    """

    signed: int = 0
    failed: int = 0
    seconds: float = 0.0
    in_flight: int = 0
