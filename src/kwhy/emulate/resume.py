"""A thread that runs, gone on with offline: from the registers of a sample, on a copy of memory.

The registers are of one moment and the memory of a later one, read while the thread goes on. Where
a thread goes round and round that is mostly the same; whoever uses it compares several moments.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kwhy.arch import x86_64_emulation as arch
from kwhy.emulate.call import Caller
from kwhy.emulate.history import History
from kwhy.emulate.limits import holds_time
from kwhy.emulate.machine import End
from kwhy.emulate.scene import RETURN, KernelScene
from kwhy.emulate.slice import behind
from kwhy.flow.cfg import Code

BLOCKS = 100_000
CALL_BLOCKS = 20_000
KEPT = 48  # registers of so many passes of an address

_NAMES = {"flags": arch.FLAGS}
"""Registers that a sample calls otherwise."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """How far it went: ``counts`` by watched address, and the registers of the first passes."""

    end: End
    counts: dict[int, int]
    passed: dict[int, list[dict[str, int]]]


def resume(
    caller: Caller, registers: dict[str, int], addresses: Sequence[int], limit: int = BLOCKS
) -> Resumed:
    """Go on from ``registers`` as the caller's CPU and task, for ``limit`` basic blocks.

    Functions that a run leaves out (delays) return at once, so time passes faster than live.
    """
    scene = scene_of(caller, registers, detail=False)
    machine = scene.machine
    counts = dict.fromkeys(addresses, 0)
    passed: dict[int, list[dict[str, int]]] = {address: [] for address in addresses}

    def note(address: int) -> None:
        counts[address] += 1
        if counts[address] <= KEPT:
            found = {name: machine.get(_NAMES.get(name, name)) for name in registers}
            passed[address].append(found)

    machine.watch(addresses, note)
    end = machine.run(registers[arch.PC], RETURN, limit)
    return Resumed(end, counts, passed)


@dataclass(frozen=True, slots=True)
class Answered:
    """A call as a thread makes it: how it ended and its result.

    What decided the result: ``reads``, the memory by address that nothing in the call had written
    (bytes, value), and ``inputs``, the registers that it was given. ``clock``: time was asked for.
    """

    end: End
    result: int
    reads: dict[int, tuple[int, int]]
    inputs: frozenset[str]
    clock: bool


def answer(
    caller: Caller, code: Code, registers: dict[str, int], site: int, limit: int = CALL_BLOCKS
) -> Answered:
    """Execute the call instruction at the program counter until it comes back to ``site``."""
    scene = scene_of(caller, registers, detail=True)
    machine = scene.machine
    end = machine.run(registers[arch.PC], site, limit)
    result = machine.get(arch.RESULT)
    if end.kind != "returned":
        return Answered(end, result, {}, frozenset(), False)
    history = History(code, machine.track, scene.instruction, result)
    reads: dict[int, tuple[int, int]] = {}
    inputs: set[str] = set()
    for step in behind(history):
        inputs |= history.given(step)
        for access in history.steps_of.accesses(step):
            before = history.steps_of.first_access(step)
            if not access.write and not any(
                history.steps_of.writers(access.address, access.size, before)
            ):
                reads.setdefault(access.address, (access.size, access.value))
    run = (insn.text for block in history.steps_of.blocks for insn in block.insns)
    clock = (
        scene.asked_time
        or any(text in arch.COUNTER_READS for text in run)
        or any(holds_time(caller.kernel.symbols.at(at)) for at in reads)
    )
    return Answered(end, result, reads, frozenset(inputs), clock)


def scene_of(caller: Caller, registers: dict[str, int], detail: bool) -> KernelScene:
    """A scene with the thread's own stack and registers."""
    scene = caller.scene(detail)
    scene.keep_stack()
    for name, value in registers.items():
        scene.machine.set(_NAMES.get(name, name), value)
    return scene
