"""A thread that runs, gone on with offline: from the registers of a sample, on a copy of memory.

The registers are of one moment and the memory of a later one, read while the thread goes on. Where
a thread goes round and round that is mostly the same; whoever uses it compares several moments.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kwhy.arch import x86_64_emulation as arch
from kwhy.emulate.call import Caller
from kwhy.emulate.machine import End
from kwhy.emulate.scene import RETURN

BLOCKS = 100_000
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
    scene = caller.scene()
    scene.keep_stack()
    machine = scene.machine
    for name, value in registers.items():
        machine.set(_NAMES.get(name, name), value)
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
