"""Whether a loop can end: what it changes itself counts, wherever it asks for it."""

from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.flow_build import ARCH, TOY, toy

from kwhy.diagnose.spin_end import Ending, ending
from kwhy.diagnose.spin_frames import Place
from kwhy.diagnose.spin_loop import Watched, registers
from kwhy.diagnose.spin_watch import Seen
from kwhy.flow.cfg import Code
from kwhy.flow.loops import loops
from kwhy.record.samples import Sample

# add rax, 2; cmp rcx, rdx; jne back; ret: nothing that the way out asks for changes
CODE = "4883c002 4839d1 75f7 c3"
KERNEL: Any = SimpleNamespace(symbols=SimpleNamespace(at=lambda address: None))


def ended(found: dict[str, Any] | None) -> Ending:
    code = Code(toy(wait=CODE), ARCH)
    function = code.function(TOY)
    (loop,) = loops(function)
    watched = Watched(function, loop, Place(TOY, "wait", (TOY,), None, ()), 1)
    rounds = [
        Sample(TOY, n, 0, False, (), {"rax": 2 * n, "rbx": n % 20, "rcx": 1, "rdx": 2, "rip": TOY})
        for n in range(40)
    ]
    watched.hits = {TOY: Seen(rounds, 40, 0, None), TOY + 9: Seen([], 0, 0, None)}
    watcher: Any = SimpleNamespace(
        breakpoints=lambda addresses, seconds: {},
        clock=lambda period, seconds: None,
        own=lambda heads: found,
        starts=[],
    )
    return ending(KERNEL, code, watcher, watched, registers(watched, ARCH))


def own(**more: Any) -> dict[str, Any]:
    return {"why": None, "memory": {}, "registers": [], "clock": False, **more}


@pytest.mark.parametrize(
    "found",
    [
        None,
        own(),
        own(memory={"4096": [8, [5] * 40]}),
        own(memory={"4096": [8, [1, 2, 3, 4] * 10]}),
        own(memory={"4096": [8, [*range(20)] * 2]}),
        own(registers=["rbx"]),
    ],
)
def test_what_stays_or_comes_around_ends_nothing(found: dict[str, Any] | None) -> None:
    """Also where the rounds could not be gone offline."""
    assert ended(found).constant


@pytest.mark.parametrize(
    "found",
    [own(memory={"4096": [8, [*range(40)]]}), own(registers=["rax"]), own(clock=True)],
)
def test_what_moves_may_raise_the_flag(found: dict[str, Any]) -> None:
    """A counter in a callee, one in a register that some branch asks for, the time."""
    end = ended(found)
    assert not end.constant
    assert {"counter", "varying"} & {operand.how for operand in end.operands}
    assert "may change that" in end.notes[0]
