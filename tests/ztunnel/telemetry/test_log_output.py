"""Lines from whoever logs to the descriptor that they end in."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ztunnel.telemetry.log_filter import LogFilter
from ztunnel.telemetry.log_format import QueueHandler, drop_notice, install, level_name, render
from ztunnel.telemetry.log_queue import LogQueue
from ztunnel.telemetry.log_writer import LogWriter


def notice(lost: int) -> bytes:
    return b"lost %d\n" % lost


def test_a_full_queue_drops_counts_and_reports_once() -> None:
    queue = LogQueue(2, notice)
    for line in (b"1\n", b"2\n", b"3\n", b"4\n5\n"):
        queue.put(line)
    assert len(queue) == 2
    assert queue.dropped == 3
    assert queue.take() == b"1\n2\nlost 3\n"
    assert queue.take() == b""
    queue.put(b"6\n")
    assert queue.take() == b"6\n"


def test_long_lines_count_by_their_bytes() -> None:
    queue = LogQueue(4, notice)
    queue.put(b"x" * 4000 + b"\n")
    queue.put(b"y" * 1000 + b"\n")
    assert queue.dropped == 1
    queue.take()
    queue.put(b"y" * 1000 + b"\n")
    assert queue.dropped == 1


def test_batches_keep_to_their_limit_and_to_whole_lines() -> None:
    queue = LogQueue(100, notice)
    for line in (b"aaaa\n", b"bbbb\n", b"cccccccccccc\n", b"d\n"):
        queue.put(line)
    assert queue.take(10) == b"aaaa\nbbbb\n"
    assert queue.take(10) == b"cccccccccccc\n"
    assert queue.take(10) == b"d\n"


def test_ready_is_told_once_for_each_filling() -> None:
    calls: list[int] = []
    queue = LogQueue(100, notice, lambda: calls.append(1))
    queue.put(b"a\n")
    queue.put(b"b\n")
    queue.take()
    queue.put(b"c\n")
    assert len(calls) == 2


@given(st.lists(st.one_of(st.none(), st.integers(1, 3000)), max_size=60), st.integers(1, 20))
def test_every_line_is_taken_or_counted(steps: list[int | None], capacity: int) -> None:
    queue = LogQueue(capacity, lambda lost: b"")
    put = taken = 0
    for step in steps:
        if step is None:
            taken += queue.take(500).count(b"\n")
        else:
            put += 1
            queue.put(b"x" * step + b"\n")
    while batch := queue.take():
        taken += batch.count(b"\n")
    assert put == taken + queue.dropped


def test_the_writer_writes_in_order_and_whole() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    writer = LogWriter(write_end, 10_000, notice)
    lines = [b"%d %s\n" % (number, b"x" * 200) for number in range(5000)]
    got: list[bytes] = []

    def read() -> None:
        while chunk := os.read(read_end, 65536):
            got.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    for line in lines:
        writer.queue.put(line)
    assert writer.close(10)
    os.close(write_end)
    reader.join()
    os.close(read_end)
    assert b"".join(got) == b"".join(lines)


def test_a_reader_that_stops_reading_costs_lines_and_not_time() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write_end, b"x" * 4096)
    writer = LogWriter(write_end, 100, notice)
    for _ in range(10_000):
        writer.queue.put(b"x" * 1000 + b"\n")
    assert writer.queue.dropped > 9000
    assert not writer.close(0.2)
    assert writer.queue.dropped >= 10_000  # the notice of the drops may be among them
    os.close(write_end)
    os.close(read_end)


def test_a_reader_that_is_gone_ends_the_writing_and_the_lines_count_as_dropped() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    writer = LogWriter(write_end, 100, notice)
    writer.queue.put(b"a\nb\n")
    writer._thread.join(10)
    writer.queue.put(b"c\n")
    assert isinstance(writer.broken, BrokenPipeError)
    assert writer.queue.dropped == 3
    assert not writer.close(1)
    os.close(write_end)


@pytest.fixture
def captured() -> Iterator[LogQueue]:
    handlers, level = logging.root.handlers[:], logging.root.level
    queue = LogQueue(1000, notice)
    install(queue, LogFilter.parse("info,ztunnel.loud=trace"), True)
    yield queue
    LogFilter().apply()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def test_the_logging_module_goes_through_the_queue(captured: LogQueue) -> None:
    logger = logging.getLogger("ztunnel.loud")
    logger.log(5, "so %s", 'much "noise"\n')
    logging.getLogger("ztunnel.quiet").debug("nothing")
    try:
        raise OSError("what\nfor")
    except OSError:
        logger.exception("it broke")
    lines = [json.loads(line) for line in captured.take().splitlines()]
    assert [line["level"] for line in lines] == ["trace", "error"]
    assert lines[0]["message"] == 'so much "noise"\n'
    assert lines[1]["traceback"].endswith("OSError: what\nfor")


def test_plain_lines() -> None:
    handler_queue = LogQueue(10, notice)
    handler = QueueHandler(handler_queue, False)
    record = logging.LogRecord("ztunnel.x", logging.WARNING, "", 0, "two\nlines", (), None)
    record.created = 0.5
    handler.handle(record)
    assert handler_queue.take() == (b"1970-01-01T00:00:00.500000Z\twarn\tztunnel.x\ttwo\\nlines\n")
    assert drop_notice(False, lambda: 0.0)(3).endswith(
        b"\twarn\tztunnel.telemetry\t3 log lines dropped because they were not taken in time\n"
    )


def test_a_mistake_in_a_log_call_is_a_line() -> None:
    queue = LogQueue(10, notice)
    record = logging.LogRecord("ztunnel.x", logging.INFO, "", 0, "%d", ("no number",), None)
    QueueHandler(queue, True).handle(record)
    assert "'%d' does not fit ('no number',)" in json.loads(queue.take())["message"]


def test_level_names() -> None:
    assert [level_name(level) for level in (50, 40, 30, 20, 10, 5)] == [
        "error", "error", "warn", "info", "debug", "trace",
    ]  # fmt: skip


@given(st.text(), st.text(), st.booleans())
def test_whatever_is_logged_is_one_line(message: str, traceback: str, json_lines: bool) -> None:
    line = render(json_lines, "now", "info", "scope", message, traceback)
    assert line.count(b"\n") == 1
    if json_lines:
        assert json.loads(line)["message"] == message
