"""How a control plane is set up."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from pathlib import Path

from daemonset.control_plane.ca.generations import OVERLAP
from daemonset.control_plane.ca.lifetimes import Lifetimes
from daemonset.control_plane.translation.settings import MeshSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingConfig:
    """What is served, and where.

    Attributes:
        address: to listen on, for all ports.
        xds_port: plaintext; None: off. tls_port: xDS and CA. status_port: HTTP. 0: any free one.
        server_names: names and addresses beside ``istiod.<root namespace>.svc`` and localhost
            that the serving certificate is good for.
        node_proxies: "namespace/account" of those that may ask for the identities of others.
        agents_report: node agents say which pods they have captured (``report_captured``, or an
            annotation of the pod); otherwise whatever labels select counts as captured.
        lifetimes: of workload certificates.
    """

    settings: MeshSettings = field(default_factory=MeshSettings)
    address: str = "127.0.0.1"
    xds_port: int | None = 15010
    tls_port: int = 15012
    status_port: int = 15014
    server_names: tuple[str, ...] = ()
    node_proxies: frozenset[str] = frozenset({"istio-system/ztunnel"})
    agents_report: bool = False
    lifetimes: Lifetimes = field(default_factory=Lifetimes)


@dataclass(frozen=True, slots=True)
class ControlPlaneConfig(ServingConfig):
    """All settings of a control plane that stands on a folder.

    Attributes:
        source: the folder of YAML.
        state: where keys and copies of good files are kept (made with mode 0700).
        given_ca: a folder in the layout of Istio's ``cacerts``; None: an authority of its own.
        refuse_errors: do not start with a file that has errors and was never good.
        poll_interval: seconds between two looks at the folder.
        overlap: how long a new root is handed out before anything is signed below it.
    """

    source: Path
    state: Path
    given_ca: Path | None = None
    refuse_errors: bool = True
    poll_interval: float = 0.1
    overlap: datetime.timedelta = OVERLAP
