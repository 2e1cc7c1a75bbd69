"""What the control plane's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemonset.control_plane.config import ControlPlaneConfig


@pytest.fixture
def config(tmp_path: Path) -> ControlPlaneConfig:
    """A control plane of an empty folder, on free ports."""
    (tmp_path / "source").mkdir()
    return ControlPlaneConfig(
        source=tmp_path / "source",
        state=tmp_path / "state",
        xds_port=0,
        tls_port=0,
        status_port=0,
        poll_interval=0.02,
    )
