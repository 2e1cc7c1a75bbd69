"""BPF instructions, by their bytes (RFC 9669; checked against what clang makes of the same)."""

import pytest

from ztunnel.kernel import assembler
from ztunnel.kernel.assembler import FP, R0, R1, R2, R3, R6, R7, WORD, Assembler


def code(*lines: str) -> bytes:
    return b"".join(bytes.fromhex(line) for line in lines)


def test_every_instruction() -> None:
    program = Assembler()
    program.copy(R6, R1)
    program.set(R0, -1)
    program.add(R3, R7)
    program.add_value(R2, -8)
    program.load(R7, R6, 0, WORD)
    program.load(R1, R0, 24)
    program.store(FP, -12, R1, WORD)
    program.store(FP, -8, R0)
    program.load_map(R1, 5)
    program.call(46)
    program.exit()
    assert program.assemble() == code(
        "bf 16 0000 00000000",
        "b7 00 0000 ffffffff",
        "0f 73 0000 00000000",
        "07 02 0000 f8ffffff",
        "61 67 0000 00000000",
        "79 01 1800 00000000",
        "63 1a f4ff 00000000",
        "7b 0a f8ff 00000000",
        "18 11 0000 05000000",
        "00 00 0000 00000000",
        "85 00 0000 2e000000",
        "95 00 0000 00000000",
    )


def test_jumps_count_instructions_from_the_next_one() -> None:
    program = Assembler()
    program.label("start")
    program.jump_if_value(R1, "==", 7, "end")
    program.jump_if(R1, ">=", R2, "start")
    program.load_map(R1, 3)
    program.jump("end")
    program.label("end")
    program.exit()
    assert program.assemble() == code(
        "15 01 0400 07000000",
        "3d 21 feff 00000000",
        "18 11 0000 03000000",
        "00 00 0000 00000000",
        "05 00 0000 00000000",
        "95 00 0000 00000000",
    )


@pytest.mark.parametrize(
    ("condition", "opcode"),
    [("==", 0x15), ("!=", 0x55), (">", 0x25), (">=", 0x35), ("<", 0xA5), ("<=", 0xB5)],
)
def test_conditions(condition: str, opcode: int) -> None:
    program = Assembler()
    program.jump_if_value(R1, condition, 1, "here")
    program.label("here")
    assert program.assemble()[0] == opcode


def test_labels_are_there_once() -> None:
    program = Assembler()
    program.jump("nowhere")
    with pytest.raises(ValueError, match="no label nowhere"):
        program.assemble()
    program.label("twice")
    with pytest.raises(ValueError, match="twice"):
        program.label("twice")
    assert assembler.R9 == 9
