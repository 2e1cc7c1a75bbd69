"""Istio's istiod and node agent, and a peer made of its client libraries, built from its module.

They are looked for in the folder that `AMBIENTD_ISTIO` names, else below
`$XDG_CACHE_HOME/ambientd/istio`. Nothing is built unless asked for:
`python -m tests.support.istio.binaries [--limit SECONDS]` builds what is missing and prints where
all of it lies. Where nothing can be built, or not within the limit, it says so and ends with
status 3.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.support.cache import Unavailable, alone, build_command, cache
from tests.support.kube.go import GO, Go

RELEASE = "1.31"
VERSION = "v0.0.0-20260827124520-eed52ebb66ad"
"""A commit of that release: its tags are no versions that Go could read."""

_NEEDS = {
    "istio.io/istio": VERSION,
    # Istio's own go.mod names commits between releases here. A module proxy need not have those.
    "istio.io/api": "v1.31.1",
    "istio.io/client-go": "v1.31.1",
    "github.com/envoyproxy/go-control-plane/envoy": "v1.40.0",
    "github.com/envoyproxy/go-control-plane/contrib": "v1.36.1-0.20260729145720-a2d8c7492908",
}
_DEFINITIONS = "manifests/charts/base/files/crd-all.gen.yaml"
_PEER = Path(__file__).parent / "peer"
_PROGRAMS = {
    "pilot-discovery": "istio.io/istio/pilot/cmd/pilot-discovery",
    "install-cni": "istio.io/istio/cni/cmd/install-cni",
    "istio-peer": "istiobin/peer",
}
NAMES = (*_PROGRAMS, "istio-crds.yaml", "gateway-api-crds.yaml")


def find(name: str) -> Path:
    """One of NAMES. Raises Unavailable; builds nothing."""
    path = _target(name)
    if path.exists():
        return path
    raise Unavailable(f"there is no {path} (python -m tests.support.istio.binaries)")


def _folder() -> Path:
    named = os.environ.get("AMBIENTD_ISTIO")
    if named:
        return Path(named)
    return cache("istio") / VERSION


def _target(name: str) -> Path:
    if name != "istio-peer":
        return _folder() / name
    # Its sources are ours and change.
    digest = hashlib.sha256()
    for path in sorted(_PEER.glob("*.go")):
        digest.update(path.read_bytes())
    return _folder() / f"istio-peer-{digest.hexdigest()[:12]}"


def build(limit: float | None = None) -> None:
    """Build what `find` does not find.

    Args:
        limit: seconds for all of it.

    Raises:
        Unavailable: a build failed, or did not end within the limit.
    """
    deadline = None if limit is None else time.monotonic() + limit
    folder = _folder()
    with alone(folder / "lock"):
        missing = [name for name in NAMES if not _target(name).exists()]
        if not missing:
            return
        with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as work:
            builder = _Builder(Go(folder, deadline), Path(work))
            for name in missing:
                builder.make(name)


class _Builder:
    """Makes the files of `_folder`, from a module of our own that requires Istio's: where Istio's
    is built as it stands, all versions of its go.mod must be there."""

    def __init__(self, command: Go, work: Path) -> None:
        self._go = command
        self._work = work
        required = "".join(f"\t{name} {version}\n" for name, version in _NEEDS.items())
        text = f"module istiobin\n\ngo {GO}.0\n\nrequire (\n{required})\n"
        (work / "go.mod").write_text(text)
        shutil.copytree(_PEER, work / "peer")
        (work / "go.sum").write_text((self._module("istio.io/istio") / "go.sum").read_text())

    def make(self, name: str) -> None:
        started = time.monotonic()
        made = self._work / f"made-{name}"
        if name in _PROGRAMS:
            version = "istio.io/istio/pkg/version"
            stamp = f"-s -w -X {version}.buildVersion={RELEASE} -X {version}.buildTag={RELEASE}"
            flags = ("-trimpath", "-p=2", "-tags=vtprotobuf", "-ldflags", stamp)
            self._go.run(self._work, "build", *flags, "-o", str(made), _PROGRAMS[name])
        elif name == "istio-crds.yaml":
            shutil.copyfile(self._module("istio.io/istio") / _DEFINITIONS, made)
        else:
            folder = self._module("sigs.k8s.io/gateway-api") / "config/crd/standard"
            texts = [path.read_text() for path in sorted(folder.glob("*.yaml"))]
            made.write_text("\n---\n".join(texts))
        os.replace(made, _target(name))  # never half a file
        print(f"{name} of Istio {RELEASE} in {time.monotonic() - started:.0f} s", file=sys.stderr)

    def _module(self, name: str) -> Path:
        """The folder of a module, downloaded where that is needed."""
        wanted = f"{name}@{_NEEDS[name]}" if name in _NEEDS else name
        answer = self._go.run(self._work, "mod", "download", "-json", wanted)
        return Path(json.loads(answer)["Dir"])


if __name__ == "__main__":
    MODULE = "tests.support.istio.binaries"
    sys.exit(build_command(MODULE, "Istio", build, lambda: map(find, NAMES)))
