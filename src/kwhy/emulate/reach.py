"""What of its own memory an execution has let others know of."""

from collections.abc import Callable, Iterator
from typing import Any

from kwhy.arch import x86_64_emulation as arch
from kwhy.emulate.history import History
from kwhy.emulate.scene import STACK

NEAR = 256
"""Bytes around an address on the stack that belong to the same variable, at most."""

Owner = Callable[[int], range | None]
"""The memory of the object around an address; None when that is not known."""


def objects(program: Any) -> Owner:
    """Objects of the kernel's slab caches, by drgn."""
    from drgn import FaultError
    from drgn.helpers.linux.slab import slab_object_info

    def owner(address: int) -> range | None:
        try:
            found = slab_object_info(program, address)
            size = int(found.slab_cache.size.value_()) if found else 0
        except (FaultError, LookupError, AttributeError):
            return None
        return range(found.address, found.address + size) if found else None

    return owner


def reachable(history: History, address: int, before: int, owner: Owner) -> bool:
    """Whether others could know what lies at an address when the step ``before`` ran.

    They cannot when it lies in an object that the execution has allocated itself, or on its stack,
    and its place was written nowhere but there.
    """
    todo: list[int] = [address]
    done: list[range] = []
    while todo:
        at = todo.pop()
        if any(at in known for known in done):
            continue
        place = range(at - NEAR, at + NEAR) if _stacked(at) else owner(at)
        if place is None or not (_stacked(at) or _allocated(history, place, before)):
            return True
        done.append(place)
        todo += [to for to in _kept(history, place, before) if not _stacked(to)]
    return False


def _stacked(address: int) -> bool:
    return STACK <= address < STACK + arch.STACK_SIZE


def _allocated(history: History, place: range, before: int) -> bool:
    return any(
        frame.result == place.start and frame.end <= before and "alloc" in frame.name
        for frame in history.all_frames
    )


def _kept(history: History, place: range, before: int) -> Iterator[int]:
    """Where addresses of an object stood that had been written."""
    steps = history.steps_of
    last = steps.first_access(before)
    for write in steps.stored(place, last):
        if steps.writers(write.address, write.size, last)[0] == write:
            yield write.address
