"""Whatever is declared is counted by somebody."""

from pathlib import Path

import pytest

import ztunnel
from ztunnel.telemetry import families

ROOT = Path(ztunnel.__file__).parent
SOURCES = "\n".join(
    path.read_text() for path in ROOT.rglob("*.py") if path != Path(families.__file__)
)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_a_family_has_a_user(name: str) -> None:
    assert f'"{name}"' in SOURCES
