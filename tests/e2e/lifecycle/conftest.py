"""The mesh that most of these tests look at."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.faults import FaultLab, fault_lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[FaultLab]:
    with fault_lab(tmp_path) as found:
        yield found
