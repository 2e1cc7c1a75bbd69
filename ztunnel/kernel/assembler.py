"""An assembler for the few BPF instructions that our program needs (RFC 9669).

Instructions are 8 bytes: opcode, source and destination register, a signed
16-bit offset, a signed 32-bit immediate. Jumps name labels, which `assemble`
turns into offsets; that a program is right is the kernel's verifier's business.
"""

import struct
from typing import Final

_INSTRUCTION: Final = struct.Struct("<BBhi")

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, FP = range(11)

# Widths of loads and stores, RFC 9669 section 5.
WORD: Final = 0x00
DOUBLE: Final = 0x18

_LOAD: Final = 0x61  # BPF_LDX | BPF_MEM
_STORE: Final = 0x63  # BPF_STX | BPF_MEM
_MAP_DESCRIPTOR: Final = 1  # BPF_PSEUDO_MAP_FD: the immediate is a map's descriptor

_CONDITIONS: Final = {"==": 0x10, "!=": 0x50, ">": 0x20, ">=": 0x30, "<": 0xA0, "<=": 0xB0}


class Assembler:
    """Gathers instructions. Registers are R0 … R9 and FP; 64 bits wide unless told otherwise."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int]] = []
        self._labels: dict[str, int] = {}
        self._jumps: list[tuple[int, str]] = []

    def label(self, name: str) -> None:
        """The next instruction is `name`. Raises ValueError when something else is."""
        if name in self._labels:
            raise ValueError(f"label {name} is there already")
        self._labels[name] = len(self._code)

    def copy(self, target: int, source: int) -> None:
        """target = source"""
        self._emit(0xBF, target, source, 0, 0)

    def set(self, target: int, value: int) -> None:
        """target = value, sign-extended from 32 bits."""
        self._emit(0xB7, target, 0, 0, value)

    def add(self, target: int, source: int) -> None:
        """target += source"""
        self._emit(0x0F, target, source, 0, 0)

    def add_value(self, target: int, value: int) -> None:
        """target += value"""
        self._emit(0x07, target, 0, 0, value)

    def load(self, target: int, base: int, offset: int, width: int = DOUBLE) -> None:
        """target = *(base + offset)"""
        self._emit(_LOAD | width, target, base, offset, 0)

    def store(self, base: int, offset: int, source: int, width: int = DOUBLE) -> None:
        """*(base + offset) = source"""
        self._emit(_STORE | width, base, source, offset, 0)

    def load_map(self, target: int, descriptor: int) -> None:
        """target = the map behind a descriptor. Two instructions long."""
        self._emit(0x18, target, _MAP_DESCRIPTOR, 0, descriptor)
        self._emit(0, 0, 0, 0, 0)

    def jump(self, label: str) -> None:
        """Goes on at `label`."""
        self._jump(0x05, 0, 0, 0, label)

    def jump_if(self, left: int, condition: str, right: int, label: str) -> None:
        """Goes on at `label` if two registers compare so, unsigned."""
        self._jump(0x0D | _CONDITIONS[condition], left, right, 0, label)

    def jump_if_value(self, left: int, condition: str, value: int, label: str) -> None:
        """The same with a constant."""
        self._jump(0x05 | _CONDITIONS[condition], left, 0, value, label)

    def call(self, helper: int) -> None:
        """R0 = helper(R1, …, R5); R1 to R5 are gone afterwards."""
        self._emit(0x85, 0, 0, 0, helper)

    def exit(self) -> None:
        """Returns R0."""
        self._emit(0x95, 0, 0, 0, 0)

    def assemble(self) -> bytes:
        """The program. Raises ValueError for a jump to a label that is not there."""
        code = list(self._code)
        for position, label in self._jumps:
            if label not in self._labels:
                raise ValueError(f"there is no label {label}")
            opcode, registers, _, value = code[position]
            code[position] = opcode, registers, self._labels[label] - position - 1, value
        return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)

    def _emit(self, opcode: int, target: int, source: int, offset: int, value: int) -> None:
        self._code.append((opcode, target | source << 4, offset, value))

    def _jump(self, opcode: int, left: int, right: int, value: int, label: str) -> None:
        self._jumps.append((len(self._code), label))
        self._emit(opcode, left, right, 0, value)
