"""Waiting for a lock by spinning, told apart from a loop of the function's own."""

from collections.abc import Sequence

from kwhy.diagnose.spin_frames import Place
from kwhy.diagnose.spin_watch import Watcher
from kwhy.flow.cfg import Code
from kwhy.kernel.model import Kernel
from kwhy.record.samples import Sample
from kwhy.verdict.spin import Lock

#: Functions that wait for a lock by spinning, and the lock's kind. Sources: kernel/locking/.
WAITS = {
    "native_queued_spin_lock_slowpath": "spinlock",
    "__pv_queued_spin_lock_slowpath": "spinlock",
    "queued_spin_lock_slowpath": "spinlock",
    "queued_read_lock_slowpath": "rwlock (to read)",
    "queued_write_lock_slowpath": "rwlock (to write)",
    "osq_lock": "mutex or rwsem (optimistic queue)",
    "mutex_spin_on_owner": "mutex",
    "rwsem_spin_on_owner": "rwsem",
    "rwsem_optimistic_spin": "rwsem",
    "__lock_task_sighand": "spinlock",
}
#: Wrappers between such a function and the code that wants the lock.
WRAPPERS = ("_raw_spin_lock", "_raw_read_lock", "_raw_write_lock", "__raw_", "queued_", "do_raw_",
            "_raw_")  # fmt: skip


def spun_lock(
    kernel: Kernel,
    code: Code,
    watcher: Watcher,
    place: Place,
    samples: Sequence[Sample],
    running: Sequence[str],
) -> Lock | None:
    """The lock that the frame at ``place`` waits for, None when it waits for none.

    ``running``: the other threads that ran all the time.
    """
    kind = WAITS.get(place.name)
    if kind is None:
        return None
    callers = [kernel.symbols.at(back - 1) for back in place.above]
    names = [symbol.name for symbol in callers if symbol is not None]
    wanted_by = next((n for n in names if not n.startswith(WRAPPERS)), place.name)
    address = _address(kernel, code, watcher, samples)
    return Lock(
        kind=kind,
        address=None if address is None else f"{address:#x}",
        name=None if address is None else _name(kernel, address),
        wanted_by=wanted_by,
        holder=_holder(running),
    )


def _address(
    kernel: Kernel, code: Code, watcher: Watcher, samples: Sequence[Sample]
) -> int | None:
    """The lock's word: the one pointer that no sample changes and that points at a held lock."""
    common: dict[str, set[int]] = {}
    for sample in samples:
        for name, value in sample.registers.items():
            common.setdefault(name, set()).add(value)
    found = []
    for name in code.arch.registers:
        values = common.get(name, set())
        if name == code.arch.stack or len(values) != 1:
            continue
        (value,) = values
        if value in found or value < 1 << 63 or value % 4:
            continue
        words = watcher.memory(value, 4)
        # The lowest byte of a held qspinlock is 1 (include/asm-generic/qspinlock_types.h).
        if words and all(word & 0xFF == 1 for word in words) and not _is_code(kernel, value):
            found.append(value)
    return found[0] if len(found) == 1 else None


def _is_code(kernel: Kernel, address: int) -> bool:
    symbol = kernel.symbols.at(address)
    return symbol is not None and symbol.code


def _name(kernel: Kernel, address: int) -> str | None:
    symbol = kernel.symbols.at(address)
    if symbol is None:
        return None
    inside = address - symbol.address
    return f"{symbol.name}+{inside:#x}" if inside else symbol.name


def _holder(running: Sequence[str]) -> str:
    """What is known of the holder: whoever holds a spinlock runs, for it may not sleep."""
    if running:
        return "it may be held by one that runs elsewhere: " + ", ".join(running)
    return "no other thread runs that could hold it: its holder is gone, or sleeps with it"
