"""The logging module's records in the same two formats as the access log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from ztunnel.telemetry.escape import quoted
from ztunnel.telemetry.log_filter import LogFilter
from ztunnel.telemetry.log_queue import LogQueue
from ztunnel.telemetry.timestamp import Clock

_LEVELS: Final = ((logging.ERROR, "error"), (logging.WARNING, "warn"), (logging.INFO, "info"))


def level_name(level: int) -> str:
    """error, warn, info, debug or trace."""
    for number, name in _LEVELS:
        if level >= number:
            return name
    return "debug" if level >= logging.DEBUG else "trace"


def drop_notice(json_lines: bool, now: Callable[[], float] = time.time) -> Callable[[int], bytes]:
    """Makes the line that tells how many lines are missing, for :class:`LogQueue`."""
    clock = Clock()

    def notice(lost: int) -> bytes:
        text = f"{lost} log lines dropped because they were not taken in time"
        return render(json_lines, clock.format(now()), "warn", "ztunnel.telemetry", text, "")

    return notice


def render(
    json_lines: bool, when: str, level: str, scope: str, message: str, traceback: str
) -> bytes:
    """One line of text or JSON; a traceback becomes a field, for a line must stay a line."""
    if json_lines:
        more = f',"traceback":{quoted(traceback)}' if traceback else ""
        return (
            f'{{"level":"{level}","time":"{when}","scope":{quoted(scope)},'
            f'"message":{quoted(message)}{more}}}\n'
        ).encode()
    if not message.isprintable():
        message = quoted(message)[1:-1]
    more = f"\ttraceback={quoted(traceback)}" if traceback else ""
    text = f"{when}\t{level}\t{scope}\t{message}{more}\n"
    return text.encode(errors="backslashreplace")


class QueueHandler(logging.Handler):
    """Sends records of the ``logging`` module into ``queue``."""

    def __init__(self, queue: LogQueue, json_lines: bool) -> None:
        super().__init__()
        self._queue = queue
        self._json = json_lines
        self._clock = Clock()
        self._formatter = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
        except (TypeError, ValueError) as error:
            # A mistake in a log call must be seen, and must not end what was being logged.
            message = f"{record.msg!r} does not fit {record.args!r}: {error}"
        traceback = self._formatter.formatException(record.exc_info) if record.exc_info else ""
        self._queue.put(
            render(
                self._json,
                self._clock.format(record.created),
                level_name(record.levelno),
                record.name,
                message,
                traceback,
            )
        )


def install(queue: LogQueue, log_filter: LogFilter, json_lines: bool) -> QueueHandler:
    """Makes ``queue`` the only way out for the ``logging`` module and applies the filter."""
    handler = QueueHandler(queue, json_lines)
    for other in logging.root.handlers[:]:
        logging.root.removeHandler(other)
    logging.root.addHandler(handler)
    log_filter.apply()
    return handler
