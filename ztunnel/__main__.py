"""`python -m ztunnel [proxy|version|help]`: the node proxy."""

import logging
import os
import socket
import sys
from importlib.metadata import version

from ztunnel import config as configuration
from ztunnel.process.supervisor import (
    CHANNEL_VARIABLE,
    ROLE_VARIABLE,
    SLOT_VARIABLE,
    Supervisor,
)


def main() -> int:
    """Runs what the command line, or the supervisor, asks for. The exit status."""
    command = sys.argv[1] if len(sys.argv) > 1 else "proxy"
    if command == "version":
        print(version("ambientd"))
        return 0
    if command in ("help", "--help", "-h"):
        print(configuration.help_text())
        return 0
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
        logging.basicConfig(
            level=logging.INFO,
            stream=sys.stdout,
            format="%(asctime)s\t%(levelname)s\t%(name)s\t%(message)s",
        )
        return Supervisor(settings.workers, settings.termination_deadline).run()
    # Imported only where needed: a worker must not pay for the control process's libraries.
    supervisor = socket.socket(fileno=int(channel))
    if role == "worker":
        from ztunnel.process import worker

        return worker.main(settings, int(slot), supervisor)
    from ztunnel.process import control

    return control.main(settings, supervisor)


if __name__ == "__main__":
    sys.exit(main())
