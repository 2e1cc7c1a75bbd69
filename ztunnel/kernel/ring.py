"""Reads a ring buffer of the kernel (BPF_MAP_TYPE_RINGBUF, Documentation/bpf/ringbuf.rst)."""

import mmap
import struct
from typing import Final

from ztunnel.kernel.bpf import RINGBUF, Map

_HEADER: Final = struct.Struct("=II")  # length and flags of a record, offset of its page
_POSITION: Final = struct.Struct("=Q")
_BUSY: Final = 1 << 31  # still being written
_DISCARD: Final = 1 << 30
_NUMBER: Final = struct.Struct("=I")


class NumberRing:
    """A ring into which a program puts 32-bit numbers; its `fd` is readable while some wait.

    Args:
        numbers: how many may wait; a power of two, at least one page's worth (256).

    Raises:
        OSError: as `Map` does.
    """

    def __init__(self, numbers: int) -> None:
        self._size = numbers * 16
        self.map = Map(RINGBUF, 0, 0, self._size)
        self.fd = self.map.fd
        page = mmap.PAGESIZE
        self._consumer = mmap.mmap(self.fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        # The data follow the producer's page, twice, so that no record is cut in two.
        self._data = mmap.mmap(
            self.fd, page + 2 * self._size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
        )

    def take(self) -> list[int]:
        """The numbers that wait, oldest first."""
        found = []
        (position,) = _POSITION.unpack_from(self._consumer, 0)
        (end,) = _POSITION.unpack_from(self._data, 0)
        while position < end:
            at = mmap.PAGESIZE + position % self._size
            length, _ = _HEADER.unpack_from(self._data, at)
            if length & _BUSY:
                break  # the ring becomes readable again when it is written
            if not length & _DISCARD:
                found.append(_NUMBER.unpack_from(self._data, at + _HEADER.size)[0])
            position += _HEADER.size + -(-(length & ~_DISCARD) // 8) * 8
            _POSITION.pack_into(self._consumer, 0, position)
        return found

    def close(self) -> None:
        """Gives the memory and the descriptor back."""
        self._consumer.close()
        self._data.close()
        self.map.close()
