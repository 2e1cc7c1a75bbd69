"""The CNI plugin, built for tests (with the compiler's checks for memory and undefined behaviour),
and called as a container runtime calls it."""

import functools
import json
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.requirements import without_compiler

SOURCES = Path(__file__).parents[2] / "daemonset" / "cni"


@functools.cache
def plugin(*, checked: bool = True) -> Path:
    """The program; one build for the whole run. Skips the test where nothing can be built."""
    missing = without_compiler()
    if missing:
        pytest.skip(missing)
    out = Path(tempfile.mkdtemp(prefix="ambient-cni-"))
    command = ["make", "--silent", "-C", str(SOURCES), f"OUT={out}"]
    subprocess.run([*command, "CHECKED=1"] if checked else command, check=True, timeout=120)
    return out / "ambient-cni"


@dataclass(frozen=True)
class Outcome:
    status: int
    output: str
    errors: str

    @property
    def json(self) -> Any:
        return json.loads(self.output)


def call(
    command: str,
    configuration: Any,
    *,
    namespace: str = "shop",
    program: Path | None = None,
    netns: str = "/var/run/netns/cni-1",
    arguments: str | None = None,
) -> Outcome:
    """Runs the plugin to its end. `configuration`: bytes, or what becomes JSON."""
    if arguments is None:
        arguments = (
            f"IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=web;"
            "K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=11111111-2222-3333-4444-555555555555"
        )
    data = configuration if isinstance(configuration, bytes) else json.dumps(configuration).encode()
    environment = {
        "PATH": os.environ["PATH"],
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "abc",
        "CNI_NETNS": netns,
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": arguments,
        "CNI_PATH": "/opt/cni/bin",
    }
    done = subprocess.run(
        [str(program or plugin())], input=data, env=environment, capture_output=True, timeout=60
    )
    return Outcome(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode())
