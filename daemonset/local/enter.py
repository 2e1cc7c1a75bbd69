"""Run a command in a pod of a mesh that another process owns (``ambient exec``).

The owner's descriptors are opened through /proc, so this needs no cooperation of it; without root
it works for the user who started the mesh, who owns its user namespace.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence

from daemonset.local import system
from daemonset.local.processes import resolve
from daemonset.local.run_directory import Description, Place

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class EnterError(Exception):
    """The mesh cannot be entered; the text says why."""


def run_in(description: Description, place: Place, command: Sequence[str]) -> int:
    """Run *command* with this terminal, in a pod or node; its exit status, as a shell counts it.

    Moves the whole process into the mesh, which must have no second thread, for good.

    Raises:
        EnterError: the namespaces cannot be entered, or there is no such command in them.
    """
    enter_place(description, place)
    try:
        process = subprocess.Popen(resolve(command), env=_environment(place))
    except OSError as error:
        raise EnterError(f"cannot run {command[0]}: {error.strerror}") from error
    with process:
        for number in _FORWARDED:
            # A terminal's Ctrl-C reaches the command by itself; what this process gets from
            # elsewhere is passed on, and it lives until the command has ended.
            signal.signal(number, lambda received, _: _pass_on(process, received))
        code = process.wait()
    return code if code >= 0 else 128 - code


def _pass_on(process: "subprocess.Popen[bytes]", received: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(received)


def enter_place(description: Description, place: Place) -> None:
    """Move this process, which must have no second thread, into a mesh for good.

    Raises:
        EnterError: the namespaces cannot be entered.
    """
    try:
        _enter(description, place)
    except OSError as error:
        raise EnterError(f"cannot enter mesh {description.name}: {error}") from error


def _enter(description: Description, place: Place) -> None:
    owner = f"/proc/{description.pid}"
    kinds = (
        (place.mnt, system.CLONE_NEWNS),
        (place.uts, system.CLONE_NEWUTS),
        (place.net, system.CLONE_NEWNET),
        (description.pid_namespace, system.CLONE_NEWPID),
    )
    user = f"{owner}/ns/user"
    foreign = os.stat(user).st_ino != os.stat("/proc/self/ns/user").st_ino
    opened = [(os.open(f"{owner}/fd/{number}", os.O_RDONLY), kind) for number, kind in kinds]
    if foreign:
        opened.insert(0, (os.open(user, os.O_RDONLY), system.CLONE_NEWUSER))
    for descriptor, kind in opened:
        system.setns(descriptor, kind)
        os.close(descriptor)
    os.chdir("/")


def _environment(place: Place) -> dict[str, str]:
    terminal = {name: os.environ[name] for name in ("TERM",) if name in os.environ}
    return (
        {**os.environ, **terminal} if not place.environment else {**place.environment, **terminal}
    )
