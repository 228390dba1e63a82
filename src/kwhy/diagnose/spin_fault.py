"""A thread that takes page faults, one after another: the loop is the processor's own.

An instruction whose fault is answered without its page being there is executed again, and faults
again. The functions that begin the handling of a fault may not have breakpoints, so nothing of it
would be seen to return.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kwhy.arch import Arch
from kwhy.case.evidence import PAGE
from kwhy.diagnose.spin_frames import function_of, stack
from kwhy.diagnose.spin_watch import Look, Watcher
from kwhy.kernel.model import Kernel
from kwhy.record.samples import Sample

HANDLER = "handle_mm_fault"  # mm/memory.c: (vma, address, flags, regs)
ROUNDS = 3
MOST = 0.9  # share of the samples that are within a fault


@dataclass(frozen=True, slots=True)
class Faults:
    """``count`` faults that were done with while watched, and pages that some of them were on."""

    count: int
    pages: frozenset[int]


def faults(
    kernel: Kernel,
    arch: Arch,
    watcher: Watcher,
    look: Look,
    samples: Sequence[Sample],
    seconds: float,
) -> Faults | None:
    """The faults that a thread takes; None if it is not in them, or if they do not go round.

    The kernel counts those that are done with, not those that it tries again by itself
    (mm_account_fault()); ones that are taken within one, for other pages, are of another loop.
    """
    outer = (kernel.symbols.at(stack(sample)[0]) for sample in samples)
    within = sum(symbol is not None and symbol.name == arch.fault_entry for symbol in outer)
    handler = kernel.symbols.address(HANDLER)
    if within < MOST * len(samples) or handler is None or watcher.forbidden is not None:
        return None
    done = look.faults
    if done is None or done < ROUNDS:
        return None
    seen = watcher.live_breakpoints([handler], seconds, chain=True)[handler]
    places = [
        sample.registers[arch.arguments[1]]
        for sample in seen.samples
        if handler not in {function_of(kernel, each - 1)[0] for each in sample.chain}
    ]
    if seen.error is not None or len(places) < ROUNDS:
        return None
    return Faults(done, frozenset(place // PAGE * PAGE for place in places))
