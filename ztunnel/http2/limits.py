"""Every limit of the codec in one place, and why it has the value it has.

Two rules chose the numbers. What honest peers do (Envoy, ztunnel, gRPC, curl) stays an order of
magnitude below each limit, and what a hostile peer can make us hold or do stays bounded: work and
memory per byte received is constant everywhere else, so only what costs more has a limit here.
"""

from typing import Final

# --- Sizes -------------------------------------------------------------------------------------

DEFAULT_WINDOW: Final = 65_535
"""Bytes a stream or connection may carry before any SETTINGS or WINDOW_UPDATE (RFC 9113 6.9.2)."""

MAX_WINDOW: Final = 2**31 - 1
"""Largest flow-control window (RFC 9113 section 6.9.1)."""

DEFAULT_MAX_FRAME_SIZE: Final = 16_384
"""Payload bytes in a frame until a peer announces more (RFC 9113 section 4.2)."""

LARGEST_MAX_FRAME_SIZE: Final = 2**24 - 1
"""Largest value SETTINGS_MAX_FRAME_SIZE can have (RFC 9113 section 6.5.2)."""

MAX_STREAM_ID: Final = 2**31 - 1

MAX_BUFFERED_FRAME: Final = 16_384
"""Bytes of a frame other than DATA that are held until it is whole.

A peer may send frames as large as we announce (1 MiB, say), but no control frame needs more than
the protocol's smallest maximum, and header blocks are cut to it by every known implementation.
Larger ones are a flood: DATA is never held, and unknown frames are skipped.
"""

MAX_SETTINGS_PER_FRAME: Final = 64
"""Envoy and ztunnel send fewer than 8; each one costs a change of state."""

# --- Header blocks -----------------------------------------------------------------------------

HEADER_BLOCK_MARGIN: Final = 4096
"""Bytes a compressed header block may exceed SETTINGS_MAX_HEADER_LIST_SIZE by.

A list that fits is smaller compressed than its announced size, because each field counts 32 bytes
more than its text (RFC 9113 section 6.5.2); the margin is there so that a list slightly too large
costs its stream and not the connection.
"""

MAX_CONTINUATIONS: Final = 32
"""CONTINUATION frames per header block (the flood of 2024, CVE-2024-27316 and its siblings)."""

MAX_TABLE_SIZE_UPDATES: Final = 16
"""Dynamic table size updates at the start of a block. RFC 7541 section 4.2 needs at most two;
some encoders repeat every SETTINGS change, so a few more are let through."""

MAX_ENCODER_TABLE: Final = 4096
"""Bytes of dynamic table we keep for sending, whatever the peer allows: the few constant fields of
a tunnel fit, and the memory is per connection."""

# --- Memory of what is gone --------------------------------------------------------------------

CLOSED_STREAMS_REMEMBERED: Final = 512
"""Streams whose way of closing is remembered, to tell late frames (fine) from wrong ones.
Older ones are forgotten: their late frames are ignored."""

MAX_UNREAD_ANSWERS: Final = 4_000
"""PING and SETTINGS acknowledgements, and resets, waiting in ``out`` since the owner last took it.
A peer that asks and does not read must not make us hold the answers. Envoy closes at 1,000, but its
own client can have 1,024 streams refused at once."""

MAX_PINGS_OUTSTANDING: Final = 16
"""PINGs of our own that wait for an answer; keepalive needs one."""

# --- Rates: a burst, and what is given back per second ----------------------------------------

RESET_BURST: Final = 1_000
RESETS_PER_SECOND: Final = 100.0
"""RST_STREAM received (rapid reset, CVE-2023-44487). nghttp2 allows the same burst and 33 a second;
a reset costs us a connection to the application at most, and nodes with many short-lived clients
reset more often than web servers see."""

PING_BURST: Final = 1_000
PINGS_PER_SECOND: Final = 1_000.0
"""PING received. gRPC probes the bandwidth with one per round trip; on a fast link that is
hundreds a second."""

SETTINGS_BURST: Final = 100
SETTINGS_PER_SECOND: Final = 5.0
"""SETTINGS received; each may touch every open stream. Peers send one or two in a lifetime."""

EMPTY_BURST: Final = 100
EMPTY_PER_SECOND: Final = 10.0
"""DATA, HEADERS or CONTINUATION frames that carry nothing and end nothing (CVE-2019-9518).
Envoy tolerates one."""

USELESS_BURST: Final = 10_000
USELESS_PER_SECOND: Final = 1_000.0
"""Frames of unknown type, and frames other than DATA for streams that are gone: honest ones race
with our closing, others are a flood."""

PRIORITY_BASE: Final = 1_000
PRIORITY_PER_STREAM: Final = 100
"""PRIORITY frames: Envoy's rule of 100 for each stream, with a start (CVE-2019-9513). We ignore
what they say."""

WINDOW_UPDATE_BASE: Final = 1_000
WINDOW_UPDATES_PER_STREAM: Final = 10
WINDOW_UPDATES_PER_DATA: Final = 4
"""WINDOW_UPDATE frames: Envoy's rule is 5 + 2 · (streams + 10 · DATA frames sent). The most
generous implementations send two for each DATA frame they get."""

REFUSED_BURST: Final = 5_000
REFUSED_PER_SECOND: Final = 100.0
"""Streams opened beyond what we announced. Envoy's client opens up to 1,024 on a new connection
before it has read our SETTINGS."""

FAULT_BURST: Final = 500
FAULTS_PER_SECOND: Final = 50.0
"""Streams that we had to reset because the peer broke them (malformed headers, and the like)."""

# --- The peers' guards, which we must not trip -------------------------------------------------

PEER_RESET_BURST: Final = 1_000
PEER_RESETS_PER_SECOND: Final = 33.0
"""RST_STREAM frames that nghttp2 (Envoy) takes from us before it closes the whole connection."""

PEER_EARLY_RESET_BURST: Final = 250
PEER_EARLY_RESETS_PER_SECOND: Final = 33.0
"""The same for streams reset before their response: Envoy counts these more strictly."""
