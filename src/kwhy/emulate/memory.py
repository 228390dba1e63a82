"""The emulated memory: pages of the target on demand, copied before the first write.

One host arena of page slots stands behind the emulator's physical addresses; a table says which
virtual page lies in which slot. A page's content as it was loaded is its *baseline*: what differs
from it was written by the code that ran.
"""

import ctypes
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from kwhy.case.evidence import PAGE, MissingMemory

SLOTS = 1 << 16
"""Pages that one machine can hold: 256 MiB of address space, used as it is touched."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page as its source gives it: its bytes, and whether the code may write there."""

    data: bytes
    writable: bool = True


@dataclass(frozen=True, slots=True)
class Change:
    """Bytes that differ from what they were before the run."""

    address: int
    before: bytes
    after: bytes


class OutOfSlots(Exception):
    """The code touched more memory than the arena holds."""


class Memory:
    """Virtual pages in an arena of slots. ``source`` gives a page or raises MissingMemory."""

    def __init__(self, source: Callable[[int], Page]) -> None:
        self._source = source
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._arena = mmap.mmap(-1, SLOTS * PAGE, flags=flags)
        self.host = ctypes.addressof(ctypes.c_char.from_buffer(self._arena))
        self._slots: dict[int, int] = {}
        self._owners: list[int] = []
        self._baseline: dict[int, Page] = {}
        self.loaded: set[int] = set()
        """The virtual pages that came from the source."""
        self.dirty: set[int] = set()

    @property
    def size(self) -> int:
        """Bytes of the arena."""
        return SLOTS * PAGE

    @property
    def pages(self) -> set[int]:
        """The virtual pages that are here."""
        return set(self._slots)

    def place(self, address: int) -> int:
        """Arena offset of a virtual address; loads its page. Raises MissingMemory."""
        page = address & -PAGE
        slot = self._slots.get(page)
        if slot is None:
            slot = self._load(page, self._source(page))
            self.loaded.add(page)
        return slot * PAGE + (address - page)

    def virtual(self, offset: int) -> int:
        """The virtual address at an arena offset."""
        return self._owners[offset // PAGE] + offset % PAGE

    def writable(self, address: int) -> bool:
        """Whether the code may write to the (loaded) page of ``address``."""
        return self._baseline[address & -PAGE].writable

    def allow_writing(self, address: int) -> None:
        """Make the loaded page of ``address`` writable to the code."""
        page = address & -PAGE
        self._baseline[page] = Page(self._baseline[page].data, True)

    def _load(self, page: int, content: Page) -> int:
        slot = len(self._owners)
        if slot >= SLOTS:
            raise OutOfSlots
        self._owners.append(page)
        self._slots[page] = slot
        self._baseline[page] = content
        self._arena[slot * PAGE : (slot + 1) * PAGE] = content.data
        return slot

    def add(self, page: int, data: bytes, writable: bool = True) -> None:
        """A page of our own at a virtual address that the target does not use."""
        self._load(page, Page(data.ljust(PAGE, b"\0"), writable))

    def read(self, address: int, size: int) -> bytes:
        """Bytes as the emulated code would see them now. Raises MissingMemory."""
        return b"".join(self._arena[at : at + length] for at, length in self._runs(address, size))

    def poke(self, address: int, data: bytes) -> None:
        """Change the baseline: part of the scene that is set, not of what the code wrote."""
        done = 0
        for at, length in self._runs(address, len(data)):
            self._arena[at : at + length] = data[done : done + length]
            page = self._owners[at // PAGE]
            old = self._baseline[page]
            start = at % PAGE
            merged = old.data[:start] + data[done : done + length] + old.data[start + length :]
            self._baseline[page] = Page(merged, old.writable)
            done += length

    def _runs(self, address: int, size: int) -> Iterator[tuple[int, int]]:
        """(arena offset, length) pieces, one per page."""
        end = address + size
        while address < end:
            length = min(end - address, PAGE - address % PAGE)
            yield self.place(address), length
            address += length

    def changes(self) -> list[Change]:
        """What the code wrote that is not what was there, in runs of at least one equal byte."""
        out: list[Change] = []
        for page in sorted(self.dirty):
            before = self._baseline[page].data
            start = self._slots[page] * PAGE
            after = self._arena[start : start + PAGE]
            if before == after:
                continue
            for low, high in _differences(before, after):
                out.append(Change(page + low, before[low:high], after[low:high]))
        return out

    def rollback(self) -> None:
        """Every byte as in the baseline again; costs one copy per page that was written."""
        for page in self.dirty:
            start = self._slots[page] * PAGE
            self._arena[start : start + PAGE] = self._baseline[page].data
        self.dirty.clear()

    def state(self) -> dict[int, bytes]:
        """The written pages as they are now, for ``restore``."""
        return {page: self._bytes(page) for page in self.dirty}

    def restore(self, state: dict[int, bytes]) -> None:
        """Go back to a ``state()`` of this memory."""
        self.rollback()
        for page, data in state.items():
            start = self._slots[page] * PAGE
            self._arena[start : start + PAGE] = data
        self.dirty = set(state)

    def _bytes(self, page: int) -> bytes:
        start = self._slots[page] * PAGE
        return self._arena[start : start + PAGE]


def _differences(before: bytes, after: bytes) -> Iterator[tuple[int, int]]:
    """Ranges [low, high) in which two pages differ, neighbours within a word joined."""
    low = high = -1
    for at in range(PAGE):
        if before[at] == after[at]:
            continue
        if low < 0:
            low = at
        elif at - high >= 8:
            yield low, high
            low = at
        high = at + 1
    if low >= 0:
        yield low, high


__all__ = ["Change", "Memory", "MissingMemory", "OutOfSlots", "Page"]
