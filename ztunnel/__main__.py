"""`python -m ztunnel [proxy|version|help]`: the node proxy."""

import os
import socket
import sys
from importlib.metadata import version

from ztunnel import config as configuration
from ztunnel.config import Config
from ztunnel.config.model import OriginalSource, ProxyMode
from ztunnel.linux.sockets import missing_capabilities
from ztunnel.native import form
from ztunnel.process.children import CHANNEL_VARIABLE, ROLE_VARIABLE, SLOT_VARIABLE
from ztunnel.process.logs import SupervisorLog
from ztunnel.process.supervisor import Supervisor


def main() -> int:
    """Runs what the command line, or the supervisor, asks for. The exit status."""
    command = sys.argv[1] if len(sys.argv) > 1 else "proxy"
    if command == "version":
        print(f"{version('ambientd')} ({form()})")
        return 0
    if command in ("help", "--help", "-h"):
        return _print(configuration.help_text())
    if command != "proxy":
        print(f"unknown command {command!r}\n\n{configuration.help_text()}", file=sys.stderr)
        return 1
    role = os.environ.pop(ROLE_VARIABLE, "")
    channel = os.environ.pop(CHANNEL_VARIABLE, "")
    slot = os.environ.pop(SLOT_VARIABLE, "-1")
    try:
        settings = configuration.load()
    except configuration.ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    if not role:
        return _supervise(settings)
    # Imported only where needed: a worker must not pay for the control process's libraries.
    supervisor = socket.socket(fileno=int(channel))
    if role == "worker":
        from ztunnel.process import worker

        return worker.main(settings, int(slot), supervisor)
    from ztunnel.process import control

    return control.main(settings, supervisor)


def _print(text: str) -> int:
    """The exit status: a reader who has seen enough (`| head`) is no failure of ours."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # The interpreter flushes once more at its end: that must find a place to write to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _supervise(settings: Config) -> int:
    missing = _missing(settings)
    if missing:
        print("not allowed here, but needed to serve pods:", file=sys.stderr)
        for what in missing:
            print(f"  {what}", file=sys.stderr)
        return 1
    log = SupervisorLog(settings.telemetry, sys.stdout.fileno())
    return Supervisor(settings.workers, settings.termination_deadline, log.write).run()


def _missing(settings: Config) -> list[str]:
    if settings.mode is ProxyMode.DEDICATED or not settings.proxy_enabled:
        return []
    keep_source = settings.sockets.original_source is OriginalSource.ALWAYS
    return missing_capabilities(settings.sockets.packet_mark, transparent=keep_source)


if __name__ == "__main__":
    sys.exit(main())
