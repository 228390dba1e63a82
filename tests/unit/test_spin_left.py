"""How much is left of a loop that counts."""

import pytest
from tests.unit.flow_build import ARCH, TOY, toy

from kwhy.diagnose.spin_frames import Place
from kwhy.diagnose.spin_left import left_in
from kwhy.diagnose.spin_loop import Watched, decisive, registers
from kwhy.diagnose.spin_watch import Seen
from kwhy.flow.cfg import Code
from kwhy.flow.loops import loops
from kwhy.record.samples import Sample

WHILE_NOT_EQUAL = "4883c002 4839c8 75f7 c3"  # add rax, 2; cmp rax, rcx; jne back; ret
WHILE_BELOW = "4883c002 4839c8 72f7 c3"  # jb back


def sample(value: int, bound: int, time: int) -> Sample:
    return Sample(TOY, time, 0, False, (), {"rax": value, "rcx": bound, "rip": TOY})


def left(code: str, bound: int, undisturbed: list[Sample]) -> str | None:
    """Rounds were seen from 1,000 to 1,198, each taking a millisecond."""
    function = Code(toy(count=code), ARCH).function(TOY)
    (loop,) = loops(function)
    watched = Watched(function, loop, Place(TOY, "count", (TOY,), None, ()), 1)
    rounds = [sample(1000 + 2 * n, bound, 1_000_000 * n) for n in range(100)]
    out = TOY + len(bytes.fromhex(code)) - 1
    watched.hits = {TOY: Seen(rounds, 100, 0, None), out: Seen([], 0, 0, None)}
    segment, source = decisive(watched, ARCH)[-1]
    return left_in(watched, undisturbed, ARCH, segment, source, registers(watched, ARCH))


@pytest.mark.parametrize("code", [WHILE_BELOW, WHILE_NOT_EQUAL])
def test_rounds_and_time_that_are_left(code: str) -> None:
    """Watched it goes slowly: 2 a millisecond."""
    assert "901 rounds are left, at most 1 s at this pace" == left(code, 3000, [])


def test_the_pace_is_that_before_it_was_slowed_by_breakpoints() -> None:
    """300 a millisecond then; that of samples of elsewhere does not count."""
    before = [sample(300 * n, 1 << 62, 1_000_000 * n) for n in range(3)]
    told = left(WHILE_BELOW, 10**15, before)
    assert told is not None
    assert told.endswith("about 106 years at this pace")
    strays = [sample(value, 1 << 62, value) for value in (5, 3, 900)]
    assert "at most 16 years" in str(left(WHILE_BELOW, 10**12, strays))


def test_a_counter_that_may_be_set_back_promises_nothing() -> None:
    """``if (rax == 1 << 20) rax = 0`` was never true while it was watched, and will be."""
    # add rax, 2; cmp rax, 1 << 20; jne on; xor eax, eax; on: cmp rax, rcx; jb back; ret
    assert left("4883c002 483d00001000 7502 31c0 4839c8 72ed c3", 1 << 30, []) is None
    assert left("4883c002 483d00001000 7502 31db 4839c8 72ed c3", 1 << 30, []) is not None


def test_a_bound_that_is_stepped_over_is_none() -> None:
    """An odd one is never equal to an even counter, but ends one that has to be below it."""
    assert left(WHILE_NOT_EQUAL, 3001, []) is None
    assert left(WHILE_BELOW, 3001, []) is not None
    assert left(WHILE_BELOW, 500, []) is None
