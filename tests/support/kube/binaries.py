"""A real Kubernetes for tests, built from its Go modules.

Used are, in this order: the binaries that environment variables name (`KUBE_APISERVER`, `ETCD`,
`KUBELET`, … for each program its own), kube-apiserver and etcd on PATH, and those built earlier
below `$XDG_CACHE_HOME/ambientd/kubernetes`. Nothing is built unless asked for:
`python -m tests.support.kube.binaries [--limit SECONDS]` builds what is missing (about fifteen
minutes on two cores, and 4 GB in Go's own caches) and prints where all of it lies. Where nothing
can be built, or not within the limit, it says so and ends with status 3; what is there by then is
used.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.support.cache import Unavailable, alone, build_command, cache
from tests.support.kube.go import GO, Go

KUBERNETES = "v1.36.3"
OLDER = "v1.35.4"
ETCD = "v3.6.8"
COREDNS = "v1.14.5"

API = ("etcd", "kube-apiserver")
"""What a Kubernetes API needs; looked for on PATH as well."""

NODES = (
    "kubectl",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "coredns",
)
"""What a cluster with nodes needs besides. On PATH there would be any version of these."""

OLDER_API = "kube-apiserver-older"
"""An API server of the version before, for what users apply."""

ALL = (*API, *NODES, OLDER_API)

_DNS_PLUGINS = ("bind", "cache", "errors", "kubernetes")


def variable(name: str) -> str:
    """The environment variable that may name a binary."""
    return name.upper().replace("-", "_")


def find(name: str) -> Path:
    """One of the binaries of `API` and `NODES`, or `OLDER_API`; builds nothing.

    Raises:
        Unavailable: there is none.
    """
    named = os.environ.get(variable(name))
    if named:
        if not os.access(named, os.X_OK):
            raise Unavailable(f"{variable(name)}={named} is not an executable file")
        return Path(named)
    on_path = shutil.which(name) if name in API else None
    if on_path is not None:
        return Path(on_path)
    built = _built(name)
    if os.access(built, os.X_OK):
        return built
    raise Unavailable(
        f"no {name}: {variable(name)} names none, and none was built "
        "(python -m tests.support.kube.binaries)"
    )


def _module(name: str) -> str:
    if name == OLDER_API:
        return f"kubernetes-{OLDER}"
    versions = {"etcd": ETCD, "coredns": COREDNS}
    return f"{name}-{versions[name]}" if name in versions else f"kubernetes-{KUBERNETES}"


def _built(name: str) -> Path:
    return cache("kubernetes") / _module(name) / name.removesuffix("-older")


def build(limit: float | None = None) -> None:
    """Build what `find` does not find.

    Args:
        limit: seconds for all of it.

    Raises:
        Unavailable: a build failed, or did not end within the limit.
    """
    deadline = None if limit is None else time.monotonic() + limit
    home = cache("kubernetes")
    with alone(home / "lock"):
        for name in ALL:
            try:
                find(name)
            except Unavailable:
                go = Go(home, deadline)
                with tempfile.TemporaryDirectory(dir=home, prefix="build-") as work:
                    _build_one(go, name, Path(work))


def _build_one(go: Go, name: str, work: Path) -> None:
    started = time.monotonic()
    writers = {"etcd": _write_etcd_module, "coredns": _write_dns_module}
    arguments = writers.get(name, _write_kube_module)(go, name, work)
    go.run(work, "build", "-trimpath", "-o", str(work / name), *arguments)
    target = _built(name)
    target.parent.mkdir(exist_ok=True)
    os.replace(work / name, target)  # never half a binary
    print(f"built {name} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def _write_etcd_module(_: Go, name: str, work: Path) -> list[str]:
    package = "go.etcd.io/etcd/server/v3"
    (work / "go.mod").write_text(f"module etcdbin\n\ngo {GO}.0\n\nrequire {package} {ETCD}\n")
    return ["-ldflags", "-s -w", package]


def _write_dns_module(go: Go, name: str, work: Path) -> list[str]:
    """CoreDNS with the few of its plugins that a cluster's DNS is made of."""
    packages = ["coremain", *(f"plugin/{plugin}" for plugin in _DNS_PLUGINS)]
    lines = [
        f'import {"" if each == "coremain" else "_ "}"github.com/coredns/coredns/{each}"'
        for each in packages
    ]
    main = ["package main", *lines, "func main() { coremain.Run() }"]
    (work / "main.go").write_text("\n".join(main) + "\n")
    module = f"module dns\n\ngo {GO}.0\n\nrequire github.com/coredns/coredns {COREDNS}\n"
    (work / "go.mod").write_text(module)
    go.run(work, "mod", "tidy")
    return ["-ldflags", "-s -w", "."]


def _write_kube_module(go: Go, name: str, work: Path) -> list[str]:
    """`go install k8s.io/kubernetes/cmd/...@version` is refused, because its go.mod has replace
    directives: a module of our own repeats them, with the published version of each staging module.
    """
    version = OLDER if name == OLDER_API else KUBERNETES
    command = name.removesuffix("-older")
    module = f"k8s.io/kubernetes@{version}"
    described = json.loads(go.run(work, "mod", "download", "-json", module))
    required = Path(described["GoMod"]).read_text()
    staging = re.findall(r"^\s*(k8s\.io/\S+) v0\.0\.0$", required, re.MULTILINE)
    published = version.replace("v1.", "v0.", 1)
    lines = ["module kubebin", "", f"go {GO}.0", "", f"require k8s.io/kubernetes {version}", ""]
    lines += [f"replace {module} => {module} {published}" for module in staging]
    (work / "go.mod").write_text("\n".join(lines) + "\n")
    return ["-ldflags", _stamp(version), f"k8s.io/kubernetes/cmd/{command}"]


def _stamp(version: str) -> str:
    """Clients parse the server's version and refuse the placeholder that stands in the source."""
    minor = version.split(".")[1]
    values = {
        "gitVersion": version,
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


if __name__ == "__main__":
    MODULE = "tests.support.kube.binaries"
    sys.exit(build_command(MODULE, "(whole) Kubernetes", build, lambda: map(find, ALL)))
