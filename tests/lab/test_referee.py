"""The referee reads QEMU's log rightly, and does not believe a false claim."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.lab.referee import (
    Code,
    Range,
    Step,
    agrees,
    decides_last,
    executions,
    parse,
    qemu_arguments,
)

LOG = """\
Trace 0: 0x7f021afd9400 [0000000000000000/ffffffff81000000/18c0c2b0/ff000200]
Trace 0: 0x7f021afd9500 [0000000000000000/ffffffff81000005/18c0c2b0/ff000200] name
Stopped execution of TB chain before 0x7f021afd9500 [ffffffff81000005] name
Trace 0: 0x7f021afd9500 [0000000000000000/ffffffff81000005/18c0c2b0/ff000200]
something else
Trace 0: 0x7f021afd9600 [0000000000000000/ffffffff8100000a/18c0c2b0/ff000200]
"""

BASE = 0xFFFFFFFF81000000

# 00 test eax,eax; 02 je 0e; 04 inc eax; 06 cmp eax,5; 09 jne 04; 0b nop; 0c ret; 0e inc; 10 ret
TEXT = bytes.fromhex("85c0 740a ffc0 83f805 75f9 90 c3 90 ffc0 c3")


@pytest.fixture
def code() -> Iterator[Code]:
    yield Code(lambda address, size: TEXT[address - BASE : address - BASE + size])


def test_a_block_that_an_interrupt_prevented_is_not_counted() -> None:
    """QEMU announces a block, stops before it and announces it again: it ran once."""
    expected = [BASE, BASE + 5, BASE + 10]
    assert expected == list(parse(LOG.splitlines()))


def test_runs_are_cut_at_the_entry_and_hold_only_what_is_asked_for() -> None:
    """Blocks of other functions in between do not count, an entry starts a new run."""
    trace = [7, 100, 104, 9000, 108, 100, 112]
    expected = [[100, 104, 108], [100, 112]]
    assert expected == executions(trace, [Range(100, 32)], 100)


def test_the_arguments_name_every_range() -> None:
    """One -dfilter with all ranges; the log is off until it is asked for."""
    ranges = [Range(0x10, 0x20), Range(0x100, 1)]
    expected = ["-D", "/x", "-dfilter", "0x10+0x20,0x100+0x1"]
    assert expected == qemu_arguments(Path("/x"), ranges)


def test_a_true_claim_agrees(code: Code) -> None:
    """The first branch falls through, the loop's branch goes back once and then on."""
    run = [BASE, BASE + 4, BASE + 4, BASE + 11]
    claim = [Step(BASE + 2, False), Step(BASE + 9, True), Step(BASE + 9, False), Step(BASE + 12)]
    assert agrees(claim, run, code)


@pytest.mark.parametrize(
    "claim",
    [
        [Step(BASE + 2, True)],
        [Step(BASE + 9, False), Step(BASE + 9, True)],
        [Step(BASE + 14)],
        [Step(BASE + 3)],
    ],
    ids=["other way", "other order", "never ran", "not an instruction"],
)
def test_a_false_claim_does_not_agree(code: Code, claim: list[Step]) -> None:
    """A branch the other way, in another order, or code that did not run is refused."""
    assert not agrees(claim, [BASE, BASE + 4, BASE + 4, BASE + 11], code)


def test_the_last_turn_of_a_loop_counts(code: Code) -> None:
    """A branch that went both ways agrees only with the way it went last."""
    run = [BASE, BASE + 4, BASE + 4, BASE + 11]
    assert decides_last([Step(BASE + 9, False)], run, code)
    assert not decides_last([Step(BASE + 9, True)], run, code)
