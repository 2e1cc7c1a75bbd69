"""Debian's kernels for a small virtual machine: fetched once, unpacked, never installed.

They come by `apt-get` from package lists of their own below `$XDG_CACHE_HOME/ambientd/vm`, signed
with Debian's keys, so that the machine's own package lists do not matter. Two of them, for kTLS
differs: `NEW` can change the keys of a connection (Linux 6.14), `OLD` cannot.

`python -m tests.support.vm.kernels` fetches them and prints where they lie.
"""

from __future__ import annotations

import lzma
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.cache import CANNOT, Unavailable, alone, cache

NEW: Final = "trixie-backports"
OLD: Final = "bookworm"

_META: Final = "linux-image-cloud-amd64"
_MIRROR: Final = "http://deb.debian.org/debian"
_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
_SECONDS: Final = 240

# What kTLS needs. Which of it is built in, or has another name, differs from kernel to kernel.
WANTED: Final = (
    "tls", "gcm", "ghash-generic", "ctr", "seqiv", "aes_generic", "aesni-intel",
    "chacha20poly1305", "chacha_generic", "chacha", "poly1305_generic",
)  # fmt: skip
_FOLDERS: Final = ("/net/tls/", "/crypto/", "/arch/x86/", "/lib/")


@dataclass(frozen=True, slots=True)
class Kernel:
    """An unpacked kernel.

    Attributes:
        release: as `uname -r` says it.
        image: what is booted.
        modules: files, each after those that it needs.
    """

    release: str
    image: Path
    modules: tuple[Path, ...]


def kernel(suite: str) -> Kernel:
    """The kernel of a suite of Debian, fetched first where needed. Raises Unavailable."""
    folder = cache("vm") / suite
    with alone(folder.with_suffix(".lock")):
        if not (folder / "modules.txt").exists():
            _fetch(suite, folder)
    names = (folder / "modules.txt").read_text().split()
    return Kernel(
        (folder / "release").read_text(),
        folder / "vmlinuz",
        tuple(folder / name for name in names),
    )


def _fetch(suite: str, folder: Path) -> None:
    for tool in ("apt-get", "apt-cache", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise Unavailable(f"no {tool}: a kernel is fetched on Debian only")
    if not Path(_KEYRING).exists():
        raise Unavailable(f"no {_KEYRING} (Debian: debian-archive-keyring)")
    fresh = folder.with_name(folder.name + ".new")
    if fresh.exists():
        shutil.rmtree(fresh)
    fresh.mkdir()
    _unpack(_download(suite, fresh), fresh)
    shutil.rmtree(fresh / "apt")
    if folder.exists():
        shutil.rmtree(folder)
    fresh.rename(folder)


def _download(suite: str, folder: Path) -> list[Path]:
    apt = folder / "apt"
    for name in ("lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True)
    source = apt / "sources.list"
    source.write_text(f"deb [signed-by={_KEYRING} arch=amd64] {_MIRROR} {suite} main\n")
    options = [
        f"Dir::Etc::sourcelist={source}",
        "Dir::Etc::sourceparts=-",
        f"Dir::State::lists={apt / 'lists'}",
        f"Dir::Cache={apt / 'cache'}",
        "Acquire::Languages=none",
        "APT::Sandbox::User=root",
        "APT::Architecture=amd64",
    ]
    settings = [part for option in options for part in ("-o", option)]
    _run(["apt-get", *settings, "-qq", "update"], apt)
    image = _needed(_run(["apt-cache", *settings, "show", _META], apt), "image")
    if not image:
        raise Unavailable(f"Debian's {suite} has no {_META}")
    # Newer packages keep the kernel and its modules in two others.
    inside = _run(["apt-cache", *settings, "show", *image], apt)
    wanted = _needed(inside, "binary") + _needed(inside, "modules")
    _run(["apt-get", *settings, "-qq", "download", *(wanted or image)], apt)
    return sorted(apt.glob("linux-*.deb"))


def _needed(shown: str, kind: str) -> list[str]:
    """The package of a kind that the first package shown depends on, if it does."""
    depends = re.search(r"^Depends: (.*)$", shown, re.MULTILINE)
    found = re.search(rf"linux-{kind}-[\w.+~-]+-cloud-amd64\b", depends[1] if depends else "")
    return [found[0]] if found is not None else []


def _run(command: list[str], folder: Path) -> str:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{command[0]} was not done after {_SECONDS} s") from None
    if done.returncode:
        raise Unavailable(f"{command[0]}: {done.stderr.strip()[-500:]}")
    return done.stdout


def _unpack(packages: list[Path], folder: Path) -> None:
    """Takes the image and the modules that are wanted, with what those need, out of packages."""
    found: dict[str, bytes] = {}
    for package in packages:
        with (
            subprocess.Popen(
                ["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE
            ) as reading,
            tarfile.open(fileobj=reading.stdout, mode="r|") as archive,
        ):
            for member in archive:
                if member.isfile():
                    _take(archive, member, found)
        if reading.returncode:
            raise Unavailable(f"{package.name} cannot be unpacked")
    if not {"release", "vmlinuz", "tls"} <= found.keys():
        names = ", ".join(package.name for package in packages)
        raise Unavailable(f"no kernel with a tls module in {names}")
    ordered: list[str] = []
    for wanted in WANTED:
        _with_needs(wanted.replace("-", "_"), found, ordered)
    for name in ("release", "vmlinuz", *ordered):
        (folder / (name if name not in ordered else f"{name}.ko")).write_bytes(found[name])
    (folder / "modules.txt").write_text(" ".join(f"{name}.ko" for name in ordered))


def _take(archive: tarfile.TarFile, member: tarfile.TarInfo, found: dict[str, bytes]) -> None:
    name = member.name
    image = re.search(r"/vmlinuz(?:-([^/]+))?$", name)
    module = re.search(r"/([^/]+)\.ko(?:\.xz)?$", name)
    if image is not None:
        found["vmlinuz"] = _content(archive, member)
    elif module is not None and any(part in name for part in _FOLDERS):
        raw = _content(archive, member)
        content = lzma.decompress(raw) if name.endswith(".xz") else raw
        found[module[1].replace("-", "_")] = content
        release = re.search(r"/modules/([^/]+)/", name)
        if release is not None:
            found["release"] = release[1].encode()


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None
    return file.read()


def _with_needs(name: str, found: dict[str, bytes], ordered: list[str]) -> None:
    if name in ordered or name not in found:
        return
    needs = re.search(rb"\0depends=([^\0]*)\0", found[name])
    for needed in needs[1].decode().split(",") if needs is not None else ():
        _with_needs(needed.replace("-", "_"), found, ordered)
    ordered.append(name)


if __name__ == "__main__":
    try:
        for one in (NEW, OLD):
            made = kernel(one)
            print(f"{made.release}: {made.image.parent}")
    except Unavailable as error:
        print(error, file=sys.stderr)
        sys.exit(CANNOT)
