"""How long certificates are good for, as the operator says it."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Callable

import pytest

from daemonset.cli import parser
from daemonset.control_plane.ca.lifetimes import Lifetimes
from daemonset.control_plane.command import folder_config
from daemonset.control_plane.config import ServingConfig
from daemonset.control_plane.kubernetes_command import serving_config
from daemonset.control_plane.translation.settings import MeshSettings


def of_a_cluster(arguments: argparse.Namespace) -> ServingConfig:
    return serving_config(arguments, MeshSettings(), "ambient-system")


def read(config: Callable[[argparse.Namespace], ServingConfig], *words: str) -> Lifetimes:
    line = ["control-plane", "--source", "folder", *words]
    return config(parser(line[0]).parse_args(line)).lifetimes


@pytest.mark.parametrize("config", [folder_config, of_a_cluster])
def test_what_is_said_counts(config: Callable[[argparse.Namespace], ServingConfig]) -> None:
    hour = datetime.timedelta(hours=1)
    assert read(config) == Lifetimes(24 * hour, 90 * 24 * hour)
    assert read(config, "--certificate-lifetime=1h30m") == Lifetimes(1.5 * hour, 90 * 24 * hour)
    longest = "--longest-certificate-lifetime=12h"
    assert read(config, longest) == Lifetimes(12 * hour, 12 * hour)
    assert read(config, longest, "--certificate-lifetime=6h") == Lifetimes(6 * hour, 12 * hour)


@pytest.mark.parametrize("option", ["--certificate-lifetime", "--longest-certificate-lifetime"])
@pytest.mark.parametrize("value", ["soon", "-1h", "", "59s", "0"])
def test_what_cannot_be_is_refused(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        read(folder_config, f"{option}={value}")
    assert f"argument {option}: {value}: " in capsys.readouterr().err
