"""What a loop asks for that it changes itself: some rounds of it, executed offline.

A condition that is false may become true by the loop's own doing, far from the ways out: a counter
in a callee that raises a flag at its end. Whatever any branch of the rounds compared is followed
back; what of that a round finds in memory, and writes, is watched over the rounds.
"""

from collections.abc import Callable
from dataclasses import dataclass

from kwhy.arch import x86_64_emulation as arch
from kwhy.emulate.call import Caller
from kwhy.emulate.history import History
from kwhy.emulate.limits import holds_time
from kwhy.emulate.resume import BLOCKS, CALL_BLOCKS, scene_of
from kwhy.emulate.scene import RETURN, KernelScene
from kwhy.emulate.slice import asked_by_all
from kwhy.flow.cfg import Code

KEPT = 48  # rounds of which the values are kept
TRACKED = 2  # rounds of which every step is followed


@dataclass(frozen=True, slots=True)
class Rounds:
    """``why`` no rounds could be followed, None if they could.

    ``memory``: by address the size in bytes, and round by round the values at the loop's head, of
    what branches asked for and the rounds wrote. ``registers``: those at the head that branches
    asked for. ``clock``: they asked for the time, be it that which the kernel keeps in memory.
    """

    why: str | None
    memory: dict[int, tuple[int, list[int]]]
    registers: frozenset[str]
    clock: bool


def rounds(caller: Caller, code: Code, registers: dict[str, int], head: int) -> Rounds:
    """Go round from ``registers`` at the loop's head as the caller's CPU and task."""
    passes, why = _go(scene_of(caller, registers, detail=False), head, lambda: None)
    if passes <= TRACKED:
        return Rounds(why or "a round is too long", {}, frozenset(), False)
    blocks = (TRACKED + 1) * BLOCKS // passes
    if blocks > CALL_BLOCKS:
        return Rounds("a round is too long", {}, frozenset(), False)
    scene = scene_of(caller, registers, detail=True)
    scene.machine.run(head, RETURN, blocks)
    history = History(code, scene.machine.track, scene.instruction)
    found, given, counted = _asked(history)
    end = history.steps_of.first_access(history.steps_of.count)
    own = {at: size for at, size in found.items() if history.steps_of.writers(at, size, end)}
    values: dict[int, list[int]] = {at: [] for at in own}
    scene = scene_of(caller, registers, detail=False)

    def note() -> None:
        for at, size in own.items():
            values[at].append(int.from_bytes(scene.memory.read(at, size), "little"))

    _go(scene, head, note)
    clock = counted or any(holds_time(caller.kernel.symbols.at(at)) for at in found)
    return Rounds(None, {at: (size, values[at]) for at, size in own.items()}, given, clock)


def _go(scene: KernelScene, head: int, note: Callable[[], None]) -> tuple[int, str | None]:
    """How often the head was passed, and why it did not go on; ``note`` at each of the first."""
    passes = 0

    def passed(_address: int) -> None:
        nonlocal passes
        passes += 1
        if passes <= KEPT:
            note()

    scene.machine.watch([head], passed)
    end = scene.machine.run(head, RETURN, BLOCKS)
    return passes, None if end.kind == "bound" else end.reason


def _asked(history: History) -> tuple[dict[int, int], frozenset[str], bool]:
    """What branches asked for as it was found: memory by address with its size in bytes, registers,
    and whether they asked for the processor's time-stamp counter."""
    steps = history.steps_of
    places: dict[int, int] = {}
    given: set[str] = set()
    counter = False
    for step in asked_by_all(history):
        counter = counter or steps.insn(step).text in arch.COUNTER_READS
        given |= history.given(step)
        before = steps.first_access(step)
        for access in steps.accesses(step):
            if not access.write and not steps.writers(access.address, access.size, before):
                places[access.address] = access.size
    return places, frozenset(given), counter
