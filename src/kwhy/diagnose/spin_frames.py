"""From samples to the frame that does not return."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kwhy.arch import Arch
from kwhy.diagnose.spin_watch import Seen, Watcher
from kwhy.kernel.model import Kernel
from kwhy.record.samples import Sample

MOST = 0.9  # share of the samples that makes a frame common to them
CHANGES, LATE = 4, 0.75  # of how a thread was in the kernel, the last of them in the last quarter
OUTWARD = 4  # frames whose entries are watched together: the processor's breakpoints


@dataclass(frozen=True, slots=True)
class Place:
    """A frame that may hold the loop.

    ``entry`` is its function's address, ``at`` where each sample was in it (a sampled instruction,
    or the call that it was in), ``back`` the address that it returns to, ``above`` the return
    addresses of its callers, innermost first, ``below`` where each sample was one frame further in.
    """

    entry: int
    name: str
    at: tuple[int, ...]
    back: int | None
    above: tuple[int, ...]
    below: tuple[int, ...] = ()


def stack(sample: Sample) -> list[int]:
    """Where each frame was, outermost first: a call's last byte, or the sampled instruction."""
    return [address - 1 for address in reversed(sample.chain)] + [sample.address]


def interrupted(kernel: Kernel, sample: Sample, is_entry: Callable[[str], bool]) -> bool:
    """Whether the sample shows the handling of an interrupt on top of the thread."""
    for address in (sample.address, *sample.chain):
        symbol = kernel.symbols.at(address)
        if symbol is not None and is_entry(symbol.name):
            return True
    return False


def on_its_stacks(samples: Sequence[Sample], arch: Arch) -> Callable[[Sample], bool]:
    """Tells whether a hit is on the stack of the thread that the samples are of.

    Interrupts have a stack of their own, and run functions that the thread runs too: what they pass
    there is not the thread's doing.
    """
    blocks = Counter(_block(sample, arch) for sample in samples)
    usual = {block for block, times in blocks.items() if times > (1 - MOST) * len(samples)}
    return lambda sample: _block(sample, arch) in usual


def _block(sample: Sample, arch: Arch) -> int:
    return sample.registers.get(arch.stack, 0) // arch.stack_size


def shared(stacks: Sequence[list[int]]) -> tuple[int, list[list[int]]]:
    """How many outer frames nearly all samples have in common, and the stacks that have them.

    The few others are from before the thread came there, or from a way that it seldom goes.
    """
    count = 0
    together = list(stacks)
    while True:
        column = Counter(each[count] for each in together if len(each) > count + 1)
        address, times = column.most_common(1)[0] if column else (0, 0)
        if times < MOST * len(stacks):
            return count, together
        together = [each for each in together if len(each) > count + 1 and each[count] == address]
        count += 1


def places(kernel: Kernel, samples: Sequence[Sample]) -> list[Place]:
    """Frames that may hold the loop: from where the samples part, outwards."""
    # The kernel's unwinder has no way out of some code (thunks of indirect calls, say).
    unwound = [sample for sample in samples if sample.chain] or samples
    count, stacks = shared([stack(sample) for sample in unwound])
    out = []
    for depth in range(count, -1, -1):
        names = Counter(function_of(kernel, each[depth]) for each in stacks if len(each) > depth)
        (entry, name), _ = names.most_common(1)[0]
        if entry is None:
            continue
        inside = [each for each in stacks if function_of(kernel, each[depth])[0] == entry]
        above = tuple(address + 1 for address in reversed(inside[0][:depth]))
        below = tuple(each[depth + 1] for each in inside if len(each) > depth + 1)
        at = tuple(each[depth] for each in inside)
        out.append(Place(entry, name, at, above[0] if above else None, above, below))
    return out


def function_of(kernel: Kernel, address: int) -> tuple[int | None, str]:
    """The entry and the name of the function around an address, that of an unlikely part's whole;
    None and the address where there is no symbol."""
    symbol = kernel.symbols.at(address)
    if symbol is None:
        return None, f"{address:#x}"
    if ".cold" in symbol.name:
        whole = kernel.symbols.named(symbol.name.split(".cold")[0])
        symbol = whole[0] if whole else symbol
    return symbol.address, symbol.name


def comes_and_goes(kernel: Kernel, arch: Arch, samples: Sequence[Sample]) -> bool:
    """Whether a thread was seen in user space, or had come from there by another way, between stays
    in the kernel, also of late: then no frame of those stayed."""
    ways = [way for sample in samples if (way := _way_in(kernel, arch, sample)) is not None]
    changes = [number for number, (a, b) in enumerate(itertools.pairwise(ways)) if a != b]
    return len(changes) >= CHANGES and changes[-1] >= LATE * len(ways)


def _way_in(kernel: Kernel, arch: Arch, sample: Sample) -> str | None:
    """By what the thread is in the kernel, "" outside of it; None if the stack does not tell."""
    if sample.user:
        return ""
    symbol = kernel.symbols.at(stack(sample)[0])
    name = symbol.name if symbol is not None else ""
    if name.startswith(arch.syscall_entries):
        return arch.syscall_entries[0]
    return name if name == arch.fault_entry else None


def stays(
    watcher: Watcher,
    found: Sequence[Place],
    seconds: float,
    goes_through: Callable[[Place], bool],
) -> tuple[int | None, dict[int, Seen]]:
    """The index of the innermost place that was not entered while watched; None if all were.

    Where nothing can be watched it is the first. The kernel's own entry code cannot be watched:
    when all that it called was entered again, so was it (``goes_through``, where nothing further in
    tells). The second are the counts of entries.
    """
    counts: dict[int, Seen] = {}
    if watcher.forbidden is not None:
        return _offline(watcher, found)
    for start in range(0, len(found), OUTWARD):
        some = found[start : start + OUTWARD]
        addresses = list(dict.fromkeys(place.entry for place in some))
        counts.update(watcher.live_breakpoints(addresses, seconds))
        for index, place in enumerate(some, start):
            seen = counts[place.entry]
            if seen.error is None and not seen.count and not seen.lost:
                return index, counts
        if start == 0 and all(counts[place.entry].error is not None for place in some):
            return (None, counts) if goes_through(found[0]) else _offline(watcher, found)
    return None, counts


def _offline(watcher: Watcher, found: Sequence[Place]) -> tuple[int | None, dict[int, Seen]]:
    """The same of the samples gone on from: what is left there (a call that is not executed there
    is not entered again) does not stay."""
    backs = [place.back for place in found if place.back is not None]
    addresses = list(dict.fromkeys([*(place.entry for place in found), *backs]))
    counts = watcher.breakpoints(addresses, 0.0)
    for index, place in enumerate(found):
        seen = [counts[each] for each in (place.entry, place.back) if each is not None]
        if any(each.error is not None for each in seen):
            return 0, counts
        if not any(each.count for each in seen):
            return index, counts
    return None, counts


