"""One line for each connection.

Keys and their order are those of Istio's access log: src.addr, src.workload, src.namespace,
src.identity, src.cluster, dst.addr, dst.hbone_addr, dst.service, dst.workload, dst.namespace,
dst.identity, dst.cluster, direction, bytes_sent, bytes_recv, duration, error; what is not known
is left out. Behind them stand ours, explained below. Outbound,
bytes_sent went from client to server; inbound, from server to client.

=============== ===================================================================================
decision        why the connection went where it went, in words
verdict         what the policies said, with policy and rule: "allowed by shop/web rule 1"
closed_by       who ended it first: client, server, or proxy
path            how its bytes moved: direct, sockmap, ktls, splice, copy, tls
response_flags  why it failed, as in the metrics: DENY, CONNECT, TLS_FAILURE …
bytes_discarded bytes that one application sent after the other had finished, and which the proxy
                there did not want: it ended the stream whole (as Envoy does) where ours would
                have gone on with that half. Left out where there are none
=============== ===================================================================================

The scope of these lines is ``access``, so that a filter ``access=off`` silences them; the scope
``access.NAMESPACE`` stands for the connections of one namespace's pods on this node.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from ztunnel.mesh.address import SocketAddress, format_address
from ztunnel.telemetry.escape import quoted
from ztunnel.telemetry.labels import NO_FLAGS, Ends
from ztunnel.telemetry.log_filter import LogFilter
from ztunnel.telemetry.record import ConnectionRecord
from ztunnel.telemetry.timestamp import Clock

SCOPE: Final = "access"
_MOST_REMEMBERED: Final = 4096


class Style:
    """How keys, addresses and whole lines are written: as text or as JSON."""

    __slots__ = ("before", "between", "discarded", "duration", "from_address", "json", "mark",
                 "received", "sent", "to_address")  # fmt: skip

    def __init__(self, json: bool) -> None:
        self.json: bool = json
        self.before: str = ',"' if json else " "
        self.between: str = '":' if json else "="
        # Addresses are bare in text, and strings in JSON.
        self.mark: str = '"' if json else ""
        # What stands before the values that differ in each line.
        self.from_address: str = self._key("src.addr") + self.mark
        self.to_address: str = self._key("dst.addr") + self.mark
        self.sent: str = self._key("bytes_sent")
        self.received: str = self._key("bytes_recv")
        self.duration: str = self._key("duration")
        self.discarded: str = self._key("bytes_discarded")

    def _key(self, key: str) -> str:
        return f"{self.before}{key}{self.between}"

    def text(self, key: str, value: str) -> str:
        """A field with a text value; nothing where the text is empty."""
        return self._key(key) + quoted(value) if value else ""

    def address(self, key: str, address: SocketAddress) -> str:
        return f"{self._key(key)}{self.mark}{format_address(address)}{self.mark}"

    def line(self, time: str, level: str, message: str, fields: str) -> bytes:
        if self.json:
            return (
                f'{{"level":"{level}","time":"{time}","scope":"{SCOPE}","message":"{message}"'
                f"{fields}}}\n"
            ).encode()
        return f"{time}\t{level}\t{SCOPE}\t{message}\t{fields[1:]}\n".encode()


class AccessLog:
    """Renders records into lines and hands these, as bytes with their newline, to ``write``.

    ``now`` gives wall-clock time in seconds; durations come from the records.
    """

    __slots__ = ("_authorities", "_clock", "_filter", "_levels", "_now", "_said", "_style",
                 "_write")  # fmt: skip

    def __init__(
        self,
        write: Callable[[bytes], None],
        log_filter: LogFilter,
        json_lines: bool,
        now: Callable[[], float],
    ) -> None:
        self._write: Callable[[bytes], None] = write
        self._style: Style = Style(json_lines)
        self._now: Callable[[], float] = now
        self._clock: Clock = Clock()
        self._filter: LogFilter = log_filter
        self._levels: dict[str, int] = {}
        # Renderings of what many connections have in common.
        self._authorities: dict[str, str] = {}
        self._said: dict[tuple[str, str, str, str], str] = {}

    def set_filter(self, log_filter: LogFilter) -> None:
        """Takes a new filter into use."""
        self._filter = log_filter
        self._levels = {}

    def opened(self, record: ConnectionRecord) -> None:
        """A line at level debug when a connection has been opened."""
        if self._level(record.ends.local.namespace) <= logging.DEBUG:
            self._emit("debug", "connection opened", self._fields(record, False))

    def complete(self, record: ConnectionRecord) -> None:
        """The line of a connection that has ended: level info, or error where it failed."""
        threshold = self._level(record.ends.local.namespace)
        if record.error:
            if threshold <= logging.ERROR:
                self._emit("error", "connection complete", self._fields(record, True))
        elif threshold <= logging.INFO:
            self._emit("info", "connection complete", self._fields(record, True))

    def describe(self, record: ConnectionRecord) -> str:
        """The fields of a live connection, for `lost_line`; "" where its line is not wanted."""
        if self._level(record.ends.local.namespace) > logging.ERROR:
            return ""
        return self._fields(record, False)

    def refused(
        self, source: SocketAddress, destination: SocketAddress, inbound: bool, error: str
    ) -> None:
        """The line, at level warn, of a connection that ended before it was known whose it is."""
        if self._level("") <= logging.WARNING:
            style = self._style
            fields = (
                style.address("src.addr", source)
                + style.address("dst.addr", destination)
                + style.text("direction", "inbound" if inbound else "outbound")
                + style.text("error", error)
            )
            self._emit("warn", "connection failed", fields)

    def _level(self, namespace: str) -> int:
        level = self._levels.get(namespace)
        if level is None:
            # A peer of another network names its namespace itself.
            if len(self._levels) > 10_000:
                self._levels.clear()
            level = self._filter.level_for(f"{SCOPE}.{namespace}" if namespace else SCOPE)
            self._levels[namespace] = level
        return level

    def _emit(self, level: str, message: str, fields: str) -> None:
        self._write(self._style.line(self._clock.format(self._now()), level, message, fields))

    def _fields(self, record: ConnectionRecord, ended: bool) -> str:
        style, ends = self._style, record.ends
        fixed = ends.log_text
        if fixed is None:
            fixed = ends.log_text = _fixed_fields(ends, style)
        mark = style.mark
        fields = (
            f"{style.from_address}{format_address(record.source_address)}{mark}{fixed[0]}"
            f"{style.to_address}{format_address(record.destination_address)}{mark}"
            f"{self._authority(record.hbone_address) if record.hbone_address else ''}{fixed[1]}"
        )
        if ended:
            up, down = record.up, record.down
            sent, received = (down, up) if ends.inbound else (up, down)
            duration = int((record.closed_at - record.opened_at) * 1000)
            fields += f'{style.sent}{sent}{style.received}{received}{style.duration}"{duration}ms"'
            if record.error:
                fields += style.text("error", record.error)
        fields += self._what_was_said(record)
        if record.flags != NO_FLAGS:
            fields += style.text("response_flags", record.flags)
        if record.discarded:
            fields += f"{style.discarded}{record.discarded}"
        return fields

    def _what_was_said(self, record: ConnectionRecord) -> str:
        """The fields whose values come from a small number of texts."""
        key = (record.decision, record.verdict, record.closed_by, record.path)
        said = self._said.get(key)
        if said is None:
            text = self._style.text
            said = (
                text("decision", record.decision)
                + text("verdict", record.verdict)
                + text("closed_by", record.closed_by)
                + text("path", record.path)
            )
            if len(self._said) >= _MOST_REMEMBERED:
                self._said.clear()
            self._said[key] = said
        return said

    def _authority(self, authority: str) -> str:
        """dst.hbone_addr: bare in text, as an address is, unless a peer put something into it
        that is none."""
        known = self._authorities.get(authority)
        if known is None:
            style = self._style
            text = quoted(authority)
            plain = (
                len(text) == len(authority) + 2 and " " not in authority and "=" not in authority
            )
            value = authority if plain and not style.json else text
            known = f"{style.before}dst.hbone_addr{style.between}{value}"
            if len(self._authorities) >= _MOST_REMEMBERED:
                self._authorities.clear()
            self._authorities[authority] = known
        return known


def lost_line(as_json: bool, moment: str, fields: str, seconds: float, error: str) -> bytes:
    """The line of a connection whose worker cannot write it any more: how much it has carried,
    nobody knows.

    Args:
        moment: as it stands in lines.
        fields: from `AccessLog.describe`.
        seconds: since it was opened.
    """
    style = Style(as_json)
    fields += f'{style.duration}"{int(seconds * 1000)}ms"' + style.text("error", error)
    return style.line(moment, "error", "connection lost", fields)


def _fixed_fields(ends: Ends, style: Style) -> tuple[str, str]:
    """What follows src.addr, and what follows dst.addr and dst.hbone_addr."""
    source, destination, service = ends.source, ends.destination, ends.service
    return (
        style.text("src.workload", source.name)
        + style.text("src.namespace", source.namespace)
        + style.text("src.identity", ends.source_principal)
        + style.text("src.cluster", source.cluster),
        style.text("dst.service", service.hostname if service is not None else "")
        + style.text("dst.workload", destination.name)
        + style.text("dst.namespace", destination.namespace)
        + style.text("dst.identity", ends.destination_principal)
        + style.text("dst.cluster", destination.cluster)
        + style.text("direction", "inbound" if ends.inbound else "outbound"),
    )
