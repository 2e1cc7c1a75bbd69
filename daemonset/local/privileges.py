"""Get what it takes to make namespaces: as root at once, else in a user namespace of our own.

Whether it works is found out by doing it. Settings of the kernel are only looked at afterwards, to
say what to change: there are more ways to forbid user namespaces than any list of settings knows.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError as RouteError

from daemonset.local import system
from daemonset.local.namespaces import in_thread
from ztunnel.linux.netlink import NetlinkError
from ztunnel.linux.nft_tables import Table
from ztunnel.linux.nftables import Nftables

_MARKER = "AMBIENT_IN_USER_NAMESPACE"

_NEEDED = system.CLONE_NEWNET | system.CLONE_NEWNS | system.CLONE_NEWUTS | system.CLONE_NEWPID

_SETTINGS = (
    # Path, the value that forbids, the command that allows.
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
    ("kernel/unprivileged_userns_clone", "0", "sudo sysctl kernel.unprivileged_userns_clone=1"),
    ("user/max_user_namespaces", "0", "sudo sysctl user.max_user_namespaces=10000"),
)


class PrivilegeError(Exception):
    """The machine does not let this user build a mesh; the text says what is missing and what
    would help, a line each."""


def acquire(command: Sequence[str]) -> None:
    """Return in a process that may make namespaces and build networks in them.

    That is this process when it may already. Otherwise the process moves into a user namespace of
    its own, in which it is root, and runs *command* (itself, with its arguments) there: a process
    that was started inside is also one that the user's other terminals may look into.

    Must be called before the process has any second thread.

    Raises:
        PrivilegeError: neither is possible.
    """
    try:
        in_thread(_build_something)
    except OSError as refused:
        if os.environ.get(_MARKER):
            raise PrivilegeError(_advice(refused)) from refused
    else:
        return
    try:
        # By a child first: should it fail half-way, this process is still what it was.
        subprocess.run(
            [sys.executable, "-m", "daemonset.local.privileges"],
            check=True,
            capture_output=True,
            text=True,
        )
    except subprocess.CalledProcessError as error:
        raise PrivilegeError(_advice(error.stderr.strip())) from error
    become_root()
    os.environ[_MARKER] = "1"
    os.execv(command[0], list(command))


def become_root() -> None:
    """Move this process into new user and network namespaces, in which its user is root.

    Raises OSError.
    """
    user_id, group_id = os.geteuid(), os.getegid()
    # A network namespace of its own as well: nobody can come back into one that belongs to the
    # user namespace outside, and this process will go into others and return all the time.
    system.unshare(system.CLONE_NEWUSER | system.CLONE_NEWNET)
    # user_namespaces(7): without privileges outside, setgroups has to be given up first.
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"0 {user_id} 1"),
        ("gid_map", f"0 {group_id} 1"),
    ):
        try:
            Path("/proc/self", name).write_text(text)
        except OSError as error:
            raise OSError(error.errno, f"/proc/self/{name}: {error.strerror}") from error


def _build_something() -> None:
    """Everything that a mesh is made from, once, in namespaces that end with the thread."""
    system.unshare(_NEEDED)
    try:
        with IPRoute() as route:
            route.link("add", ifname="bridge", kind="bridge")
            route.link("add", ifname="one", kind="veth", peer={"ifname": "other"})
        with Nftables() as tables:
            tables.replace(Table("ambient-probe", ()))
    except (RouteError, NetlinkError) as error:
        notes = " ".join(getattr(error, "__notes__", ()))
        raise OSError(
            getattr(error, "code", None) or getattr(error, "errno", 0),
            f"this kernel cannot make a bridge, a veth pair or an nftables table: {error} {notes}",
        ) from error


def _advice(refused: object) -> str:
    lines = [f"A mesh needs network namespaces, and making one was refused: {refused}."]
    for name, forbidding, command in _SETTINGS:
        try:
            value = Path("/proc/sys", name).read_text().strip()
        except OSError:
            continue  # not a setting of this kernel
        if value == forbidding:
            lines.append(f"This machine has {name.replace('/', '.')} = {value}; allow it with:")
            lines.append(f"    {command}")
    if _in_container():
        lines.append(
            "This looks like a container: start it with `--privileged`, or with"
            " `--cap-add SYS_ADMIN --cap-add NET_ADMIN --security-opt seccomp=unconfined`."
        )
    if os.geteuid() != 0:
        lines.append("Or run it as root: sudo ambient …")
    return "\n".join(lines)


def _in_container() -> bool:
    return Path("/.dockerenv").exists() or Path("/run/.containerenv").exists()


if __name__ == "__main__":
    try:
        become_root()
        in_thread(_build_something)
    except OSError as error:
        sys.exit(str(error))
