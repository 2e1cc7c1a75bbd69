"""Container images without a registry or a build engine: layers as tar files, packed in one file
that `ctr images import` takes (the format of `docker save`)."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Layer:
    """A layer that is being written; everything in it belongs to root. A context manager."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._tar = tarfile.open(file, "w")  # noqa: SIM115 - it is closed by __exit__
        self._known: set[str] = set()

    def __enter__(self) -> Layer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._tar.close()

    def add(self, path: str, source: Path, *, mode: int | None = None) -> None:
        """A file, what a link leads to as well."""
        with open(source, "rb") as file:
            info = self._tar.gettarinfo(arcname=path.lstrip("/"), fileobj=file)
            info.type = tarfile.REGTYPE  # and no link to another name of the same file
            info.size = os.fstat(file.fileno()).st_size
            self._put(info, info.mode if mode is None else mode, file)

    def add_tree(self, path: str, source: Path, without: frozenset[str] = frozenset()) -> None:
        """A folder with all in it, but for entries with these names."""
        for folder, names, files in os.walk(source):
            names[:] = [name for name in names if name not in without]
            inside = os.path.join(path, os.path.relpath(folder, source))
            for name in files:
                if name not in without:
                    self.add(os.path.normpath(os.path.join(inside, name)), Path(folder, name))

    def text(self, path: str, content: str, *, mode: int = 0o644) -> None:
        data = content.encode()
        info = tarfile.TarInfo(path.lstrip("/"))
        info.size = len(data)
        self._put(info, mode, io.BytesIO(data))

    def link(self, path: str, target: str) -> None:
        info = tarfile.TarInfo(path.lstrip("/"))
        info.type, info.linkname = tarfile.SYMTYPE, target
        self._put(info, 0o777, None)

    def folder(self, path: str, *, mode: int = 0o755) -> None:
        info = tarfile.TarInfo(path.strip("/"))
        info.type = tarfile.DIRTYPE
        self._put(info, mode, None)

    def _put(self, info: tarfile.TarInfo, mode: int, data: io.BufferedIOBase | None) -> None:
        if info.name in self._known:
            return
        self._known.add(info.name)
        parent = os.path.dirname(info.name)
        if parent:
            self.folder(parent)
        info.mode = mode
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        self._tar.addfile(info, data)


def pack(
    file: Path,
    name: str,
    layers: Sequence[Path],
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
) -> Path:
    """An image of these layers; the file."""
    variables = {"PATH": _SEARCH, **(environment or {})}
    digests = []
    for layer in layers:
        with open(layer, "rb") as data:
            digests.append("sha256:" + hashlib.file_digest(data, "sha256").hexdigest())
    config = {
        "architecture": _ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {
            "Cmd": list(command),
            "Env": [f"{key}={value}" for key, value in variables.items()],
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": digests},
    }
    text = json.dumps(config)
    config_name = hashlib.sha256(text.encode()).hexdigest() + ".json"
    names = [layer.name for layer in layers]
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": names}]
    with Layer(file) as image:
        for layer in layers:
            image.add(layer.name, layer)
        image.text(config_name, text)
        image.text("manifest.json", json.dumps(manifest))
    return file
