"""The `bpf(2)` system call, by ctypes: maps, and programs attached to them.

Only what the sockmap path needs. Sizes and offsets are those of `union bpf_attr`
in linux/bpf.h; the kernel takes a shorter one than its own and reads the rest as zeros.
"""

import ctypes
import mmap
import os
import platform
import struct
from typing import Final

_SYSCALL: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}

# Commands.
_MAP_CREATE, _MAP_UPDATE, _MAP_DELETE = 0, 2, 3
_PROG_LOAD, _PROG_ATTACH = 5, 8

# Kinds of maps.
HASH: Final = 1
ARRAY: Final = 2
SOCKHASH: Final = 18
RINGBUF: Final = 27

_NO_PREALLOC: Final = 1  # BPF_F_NO_PREALLOC
_MAPPABLE: Final = 1 << 10  # BPF_F_MMAPABLE

_SK_SKB: Final = 14  # BPF_PROG_TYPE_SK_SKB
_STREAM_VERDICT: Final = 5  # BPF_SK_SKB_STREAM_VERDICT
_LOG_SIZE: Final = 65536

_CREATE: Final = struct.Struct("=5I")  # kind, key size, value size, entries, flags
_ELEMENT: Final = struct.Struct("=I4xQQQ")  # map, key, value, flags
_KEY_END: Final = 16  # bytes of it, up to the value
_LOAD: Final = struct.Struct("=IIQQIIQ")  # kind, count, code, licence, log level, log size, log
_ATTACH: Final = struct.Struct("=4I")  # map, program, kind of attachment, flags

_libc: Final = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: bytes, what: str) -> int:
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(38, f"{what}: the number of bpf(2) on {platform.machine()} is not known")
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = int(_libc.syscall(number, command, buffer, len(attributes)))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


class Map:
    """A map of the kernel; gone with its last descriptor.

    Args:
        kind: HASH, ARRAY, SOCKHASH or RINGBUF.
        key_size, value_size: bytes.
        entries: the most that it holds.
        mapped: an array that `mapping` shows as memory.

    Raises:
        OSError: EPERM without CAP_BPF and CAP_NET_ADMIN in the initial user namespace, or where
            a kernel without that kind of map says EINVAL.
    """

    def __init__(
        self, kind: int, key_size: int, value_size: int, entries: int, *, mapped: bool = False
    ) -> None:
        flags = _NO_PREALLOC if kind == HASH else _MAPPABLE if mapped else 0
        attributes = _CREATE.pack(kind, key_size, value_size, entries, flags)
        self.fd = _bpf(_MAP_CREATE, attributes, "make a BPF map")
        self._size = value_size * entries
        self._key = ctypes.create_string_buffer(key_size)
        self._value = ctypes.create_string_buffer(value_size)
        self._attributes = ctypes.create_string_buffer(
            _ELEMENT.pack(self.fd, ctypes.addressof(self._key), ctypes.addressof(self._value), 0),
            _ELEMENT.size,
        )

    def mapping(self) -> mmap.mmap:
        """The whole of a mapped array as memory that the program sees. Raises OSError."""
        size = -(-self._size // mmap.PAGESIZE) * mmap.PAGESIZE
        return mmap.mmap(self.fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)

    def update(self, key: bytes, value: bytes) -> None:
        """Puts an element there, new or not. Raises OSError (E2BIG where the map is full)."""
        self._key.raw = key
        self._value.raw = value
        self._element(_MAP_UPDATE, _ELEMENT.size, "update a BPF map")

    def delete(self, key: bytes) -> None:
        """Takes an element out. Raises OSError (ENOENT when it is not there)."""
        self._key.raw = key
        # The kernel wants nothing behind the key here.
        self._element(_MAP_DELETE, _KEY_END, "delete from a BPF map")

    def close(self) -> None:
        """Gives the descriptor back. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _element(self, command: int, size: int, what: str) -> None:
        number = _SYSCALL[platform.machine()]
        if _libc.syscall(number, command, self._attributes, size) < 0:
            error = ctypes.get_errno()
            raise OSError(error, f"{what}: {os.strerror(error)}")


def load_stream_verdict(code: bytes) -> int:
    """Loads a program that judges what arrives at the sockets of a map; returns its descriptor.

    Raises OSError; where the verifier refuses the program, with the end of what it says.
    """
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    program = ctypes.create_string_buffer(code, len(code))
    kind, count = _SK_SKB, len(code) // 8

    def load(level: int, log: ctypes.Array[ctypes.c_char] | None) -> int:
        attributes = _LOAD.pack(
            kind,
            count,
            ctypes.addressof(program),
            ctypes.addressof(licence),
            level,
            len(log) if log is not None else 0,
            ctypes.addressof(log) if log is not None else 0,
        )
        return _bpf(_PROG_LOAD, attributes, "load a BPF program")

    try:
        return load(0, None)
    except OSError as error:
        if error.errno != 22 and error.errno != 13:  # EINVAL, EACCES: the verifier's words
            raise
    log = ctypes.create_string_buffer(_LOG_SIZE)
    try:
        return load(1, log)
    except OSError as error:
        said = log.value.decode(errors="replace").strip()
        raise OSError(error.errno, f"{error.strerror}: {said[-2000:]}") from None


def attach_to_map(program: int, target: Map) -> None:
    """Has a stream verdict judge what arrives at the sockets of `target`. Raises OSError."""
    attributes = _ATTACH.pack(target.fd, program, _STREAM_VERDICT, 0)
    _bpf(_PROG_ATTACH, attributes, "attach a BPF program")


def close(descriptor: int) -> None:
    """Gives a program's descriptor back; what it is attached to keeps it."""
    os.close(descriptor)
