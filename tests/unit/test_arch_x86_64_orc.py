"""Unwind rules in the numberings of all kernels."""

from kwhy.arch.x86_64_orc import Rule, numbering, rule


def entry(sp: int, offset: int, bp: int = 0, bp_offset: int = 0, bits: int = 0) -> bytes:
    return (
        offset.to_bytes(2, "little", signed=True)
        + bp_offset.to_bytes(2, "little", signed=True)
        + (sp | bp << 4 | bits).to_bytes(2, "little")
    )


def test_before_6_4() -> None:
    """SP is 5, a call is type 0, and an entry without a base ends the stack or says nothing."""
    numbers = numbering(entry(5, 8) * 9 + entry(4, 16), end_bit=10, signal_bit=None)
    assert Rule("call", "sp", 16, "prev_sp", -16) == rule(entry(5, 16, 1, -16), numbers)
    assert "regs" == rule(entry(5, 0, bits=1 << 8), numbers).kind
    assert "partial" == rule(entry(5, 0, bits=2 << 8), numbers).kind
    assert "end" == rule(entry(0, 0, bits=1 << 10), numbers).kind
    assert "undefined" == rule(entry(0, 0), numbers).kind


def test_since_6_4() -> None:
    """SP is 5 still, types count from undefined, and there is a bit for signal frames."""
    numbers = numbering(entry(5, 8, bits=2 << 8) * 9, end_bit=None, signal_bit=11)
    assert Rule("call", "sp", 8, "", 0) == rule(entry(5, 8, bits=2 << 8), numbers)
    assert "end" == rule(entry(0, 0, bits=1 << 8), numbers).kind
    assert "undefined" == rule(entry(0, 0), numbers).kind
    assert Rule("regs", "sp", 0, "", 0, True) == rule(entry(5, 0, bits=0xB << 8), numbers)


def test_registers_renumbered() -> None:
    """SP is 3 in the newest kernels, and the caller's stack pointer 8."""
    numbers = numbering(entry(3, 8, bits=2 << 8) * 9, end_bit=None, signal_bit=11)
    assert Rule("call", "bp", 16, "prev_sp", -16) == rule(
        entry(4, 16, 8, -16, bits=2 << 8), numbers
    )


def test_register_that_nobody_knows() -> None:
    """An unknown base gives a rule that cannot be followed, not a wrong one."""
    numbers = numbering(entry(5, 8) * 9, end_bit=10, signal_bit=None)
    assert "?" == rule(entry(14, 8), numbers).sp
