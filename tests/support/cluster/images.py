"""The images of a cluster: what holds a pod open, and ours, as the Dockerfile would make it.

Ours is made of what the Dockerfile's steps give: an interpreter (this machine's, with the libraries
that it and the packages need), the packages that pyproject.toml asks for at run time and no others
(a missing one is found), the project's wheel (what AMBIENTD_WHEEL names, CI's compiled one, or
else plain Python), and the CNI plugin.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.cluster.archive import Layer, pack
from tests.support.cluster.node_files import PAUSE_IMAGE
from tests.support.cni import plugin
from tests.support.image import wheel

PROJECT = Path(__file__).parents[3]
IMAGE = "docker.io/library/ambientd:0.1.0"
_PYTHON = "/usr/local/bin/python3"
_NOT_NEEDED = frozenset(
    {"test", "site-packages", "dist-packages", "idlelib", "ensurepip", "tkinter", "lib2to3"}
    | {sysconfig.get_config_var("LIBPL").rpartition("/")[2]}  # for embedding: tens of megabytes
)
# Imported only to read a kubeconfig, which no pod has; with what it requires, half of the image.
_LEFT_OUT = "kubernetes"
_NSS = ("libnss_dns.so.2", "libnss_files.so.2")


def make_images(folder: Path) -> list[Path]:
    """The archives. Raises CalledProcessError when one of the steps fails."""
    folder.mkdir()
    command = ["cc", "-Os", "-static", "-s", "-o", str(folder / "pause")]
    subprocess.run([*command, str(Path(__file__).with_name("pause.c"))], check=True)
    with Layer(folder / "pause-layer.tar") as layer:
        layer.add("/pause", folder / "pause", mode=0o755)
    pause = pack(folder / "pause.tar", PAUSE_IMAGE, [layer.file], ["/pause"])
    packages = _Packages()
    layers = [
        packages.interpreter(folder / "interpreter-layer.tar"),
        packages.requirements(folder / "requirements-layer.tar"),
        _project(folder, packages.home),
    ]
    variables = {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    ours = pack(folder / "ambientd.tar", IMAGE, layers, ["ambient", "--help"], variables)
    for each in layers:
        each.unlink()
    return [pause, ours]


class _Packages:
    """This environment's interpreter and packages; `home` is where packages lie in the image."""

    def __init__(self) -> None:
        self._program = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
        self._library = Path(sysconfig.get_path("stdlib"))
        ask = [str(self._program), "-c", "import site; print(site.getsitepackages()[0])"]
        done = subprocess.run(ask, capture_output=True, text=True, check=True)
        self.home = done.stdout.strip()
        self._files = dict(self._required())

    def interpreter(self, file: Path) -> Path:
        with Layer(file) as layer:
            layer.add(str(self._program), self._program, mode=0o755)
            layer.link(_PYTHON, str(self._program))
            layer.add_tree(str(self._library), self._library, _NOT_NEEDED)
            modules = [*self._library.glob("lib-dynload/*.so"), *self._files.values()]
            native = [
                each for each in modules if ".so" in each.suffixes and "_tkinter" not in each.name
            ]
            for library in _libraries([self._program, *native]):
                layer.add(str(library), library, mode=0o755)
            layer.text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
            layer.text("/etc/group", "root:x:0:\n")
            layer.text("/etc/nsswitch.conf", "hosts: files dns\n")
            layer.folder("/tmp", mode=0o1777)
        return file

    def requirements(self, file: Path) -> Path:
        with Layer(file) as layer:
            for path, source in self._files.items():
                layer.add(path, source)
        return file

    def _required(self) -> Iterable[tuple[str, Path]]:
        """Each file of what the project requires at run time, and where it belongs."""
        project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
        waiting, known = _names(project["dependencies"]), {_LEFT_OUT}
        while waiting:
            name = waiting.pop()
            if name in known:
                continue
            known.add(name)
            waiting += _names(importlib.metadata.requires(name) or ())
            for each in importlib.metadata.files(name) or ():
                if ".." not in each.parts:  # scripts of others are not called
                    yield f"{self.home}/{each}", Path(str(each.locate()))


def _names(requirements: Iterable[str]) -> list[str]:
    """Of those that this interpreter needs, without extras."""
    extra = {"extra": ""}
    return [
        canonicalize_name(each.name)
        for each in map(Requirement, requirements)
        if each.marker is None or each.marker.evaluate(extra)
    ]


def _libraries(programs: Iterable[Path]) -> set[Path]:
    """What the dynamic loader finds outside of the packages, and the two that it is not told of."""
    own = sysconfig.get_path("purelib")
    found: set[Path] = set()
    paths = [str(path) for path in programs]
    listed = subprocess.run(["ldd", *paths], capture_output=True, text=True).stdout
    for path in set(re.findall(r"(/\S+) \(0x", listed)):
        if not path.startswith(own):
            found.add(Path(path))
    [libc] = [path for path in found if path.name == "libc.so.6"]
    return found | {libc.with_name(name) for name in _NSS if libc.with_name(name).exists()}


def _project(folder: Path, home: str) -> Path:
    """The wheel that the Dockerfile builds, unpacked as pip does it."""
    built = folder / "built"
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    found = str(wheel(folder / "wheel"))
    subprocess.run([*pip, "install", "--no-deps", "--target", str(built), found], check=True)
    script = (built / "bin/ambient").read_text().split("\n", 1)[1]
    with Layer(folder / "project-layer.tar") as layer:
        layer.add_tree(home, built, frozenset({"bin"}))
        layer.text("/usr/local/bin/ambient", f"#!{_PYTHON}\n{script}", mode=0o755)
        layer.add("/opt/ambient/ambient-cni", plugin(checked=False), mode=0o755)
    shutil.rmtree(built)
    shutil.rmtree(folder / "wheel", ignore_errors=True)
    return layer.file
