"""The emulated memory: pages of the target on demand, copied before the first write.

One host arena of page slots stands behind the emulator's physical addresses; a table, which the
compiled hooks read too, says which virtual page lies in which slot. A page's content as it was
loaded is its *baseline*: what differs from it was written by the code that ran.
"""

import ctypes
import hashlib
import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kwhy.case.evidence import PAGE, MissingMemory
from kwhy.emulate.compiled import library

SLOTS = 1 << 16
"""Pages that one machine can hold: 256 MiB of address space, used as it is touched."""

WRITABLE, DIRTY = 1, 2
_BUCKETS = 2 * SLOTS
_HERE = 1  # in a key, which is a page's address: the bucket is taken
_HASH = 0x9E3779B97F4A7C15
_HASH_SHIFT = 64 - 17  # to as many bits as _BUCKETS has
_LINE = 64
_LINES = PAGE // _LINE
_KEPT = 256
"""Dirty pages that stay granted for writing over a rollback: copying them costs less than asking
for each anew."""
_FORMATS = {1: "b", 2: "h", 4: "i", 8: "q"}
"""Of signed numbers by their size, see the module struct; the host is little-endian too."""
_NORESERVE = 0x4000  # MAP_NORESERVE, asm-generic/mman-common.h; Python does not name it

State = bytes
"""What differs from the baseline; empty: nothing does.

8-byte words: for each page its address, a mask of its 64-byte lines, and those lines.
"""


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


class Table(ctypes.Structure):
    """struct table of hooks.c: buckets of page addresses with their slots; facts by slot.

    ``dirty`` lists the slots that were granted for writing, ``n_dirty`` of them.
    """

    _fields_ = [
        *((name, ctypes.c_void_p) for name in (
            "keys", "slots", "pages", "flags", "dirty", "arena", "baseline")),
        ("n_dirty", ctypes.c_uint64),
    ]  # fmt: skip


class Memory:
    """Virtual pages in an arena of slots. ``source`` gives a page or raises MissingMemory."""

    def __init__(self, source: Callable[[int], Page]) -> None:
        self._source = source
        self._arena = host_memory(SLOTS * PAGE)
        self.host = ctypes.addressof(ctypes.c_char.from_buffer(self._arena))
        self.table = Table(arena=self.host)
        self._keys = self._column("keys", _BUCKETS, np.uint64)
        self._buckets = self._column("slots", _BUCKETS, np.uint32)
        self._pages = self._column("pages", SLOTS, np.uint64)
        self._flags = self._column("flags", SLOTS, np.uint8)
        self._dirty = self._column("dirty", SLOTS, np.uint32)
        words = (SLOTS, _LINES, _LINE // 8)
        self._now = np.frombuffer(self._arena, np.uint64).reshape(words)
        self._baseline = self._column("baseline", SLOTS * PAGE // 8, np.uint64).reshape(words)
        self._compiled = library()
        self._room: Any = (ctypes.c_uint64 * 0)()
        self._slots: dict[int, int] = {}
        self._readers: dict[tuple[int, bool], Callable[[int], int]] = {}
        self.loaded: set[int] = set()
        """The virtual pages that came from the source."""
        self.withdrawn = 0
        """How often pages that had been granted for writing no longer are."""

    def _column(self, name: str, count: int, kind: Any) -> Any:
        buffer = host_memory(count * np.dtype(kind).itemsize)
        setattr(self.table, name, ctypes.addressof(ctypes.c_char.from_buffer(buffer)))
        return np.frombuffer(buffer, kind)

    @property
    def size(self) -> int:
        """Bytes of the arena."""
        return SLOTS * PAGE

    @property
    def pages(self) -> set[int]:
        """The virtual pages that are here."""
        return set(self._slots)

    # -- pages -------------------------------------------------------------------------------------

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
        return int(self._pages[offset // PAGE]) + offset % PAGE

    def writable(self, address: int) -> bool:
        """Whether the code may write to the (loaded) page of ``address``."""
        return bool(self._flags[self._slots[address & -PAGE]] & WRITABLE)

    def allow_writing(self, address: int) -> None:
        """Make the loaded page of ``address`` writable to the code."""
        self._flags[self._slots[address & -PAGE]] |= WRITABLE

    def grant(self, address: int) -> None:
        """The code is about to write to the (loaded) page of ``address``."""
        slot = self._slots[address & -PAGE]
        if not self._flags[slot] & DIRTY:
            self._flags[slot] |= DIRTY
            self._dirty[self.table.n_dirty] = slot
            self.table.n_dirty += 1

    def granted(self, address: int) -> bool:
        """Whether the (loaded) page of ``address`` may have been written."""
        return bool(self._flags[self._slots[address & -PAGE]] & DIRTY)

    def _load(self, page: int, content: Page) -> int:
        slot = len(self._slots)
        if slot >= SLOTS:
            raise OutOfSlots
        bucket = (page * _HASH & (1 << 64) - 1) >> _HASH_SHIFT
        while self._keys[bucket]:
            bucket = (bucket + 1) % _BUCKETS
        self._buckets[bucket] = slot
        self._keys[bucket] = page | _HERE
        self._pages[slot] = page
        self._flags[slot] = WRITABLE if content.writable else 0
        self._slots[page] = slot
        self._now[slot] = self._baseline[slot] = _words(content.data)
        return slot

    def add(self, page: int, data: bytes, writable: bool = True) -> None:
        """A page of our own at a virtual address that the target does not use."""
        self._load(page, Page(data.ljust(PAGE, b"\0"), writable))

    def fingerprint(self) -> str:
        """What stands for the content of the pages that came from the source."""
        told = hashlib.blake2b(digest_size=16)
        for page in sorted(self.loaded):
            told.update(page.to_bytes(8, "little") + self._baseline[self._slots[page]].tobytes())
        return told.hexdigest()

    # -- bytes -------------------------------------------------------------------------------------

    def read(self, address: int, size: int) -> bytes:
        """Bytes as the emulated code would see them now. Raises MissingMemory."""
        inside = address % PAGE
        if inside + size <= PAGE:
            slot = self._slots.get(address - inside)
            start = self.place(address) if slot is None else slot * PAGE + inside
            return self._arena[start : start + size]
        return b"".join(self._arena[at : at + length] for at, length in self._runs(address, size))

    def reader(self, size: int, signed: bool = False) -> Callable[[int], int]:
        """Reads the (little-endian) number of ``size`` bytes at an address, as the emulated code
        would see it. Raises MissingMemory."""
        if (size, signed) not in self._readers:
            self._readers[size, signed] = self._reader(size, signed)
        return self._readers[size, signed]

    def _reader(self, size: int, signed: bool) -> Callable[[int], int]:
        def anyhow(address: int) -> int:
            return int.from_bytes(self.read(address, size), "little", signed=signed)

        if size not in _FORMATS:
            return anyhow
        slot_of = self._slots.get
        kind: Any = _FORMATS[size] if signed else _FORMATS[size].upper()
        numbers: Any = memoryview(self._arena).cast(kind)

        def aligned(address: int) -> int:
            inside = address % PAGE
            slot = slot_of(address - inside)
            if slot is None or inside % size:
                return anyhow(address)
            number: int = numbers[(slot * PAGE + inside) // size]
            return number

        return aligned

    def poke(self, address: int, data: bytes) -> None:
        """Change the baseline: part of the scene that is set, not of what the code wrote."""
        done = 0
        for at, length in self._runs(address, len(data)):
            piece = data[done : done + length]
            self._arena[at : at + length] = piece
            ctypes.memmove(self._baseline.ctypes.data + at, piece, length)
            done += length

    def _runs(self, address: int, size: int) -> Iterator[tuple[int, int]]:
        """(arena offset, length) pieces, one per page."""
        end = address + size
        while address < end:
            length = min(end - address, PAGE - address % PAGE)
            yield self.place(address), length
            address += length

    # -- what was written --------------------------------------------------------------------------

    @property
    def _written(self) -> Any:
        """The slots that may differ from the baseline."""
        return self._dirty[: self.table.n_dirty]

    def changes(self) -> list[Change]:
        """What the code wrote that is not what was there, in runs of at least one equal byte."""
        out: list[Change] = []
        for slot in sorted(self._written.tolist(), key=self._pages.__getitem__):
            page = int(self._pages[slot])
            before, after = self._baseline[slot].tobytes(), self._now[slot].tobytes()
            for low, high in _differences(before, after):
                out.append(Change(page + low, before[low:high], after[low:high]))
        return out

    def rollback(self) -> None:
        """Every byte as in the baseline again; costs one copy per page that was written."""
        if self._compiled is not None:
            self._compiled.kwhy_rollback(ctypes.byref(self.table))
        else:
            self._now[self._written] = self._baseline[self._written]
        if self.table.n_dirty > _KEPT:
            self._flags[self._written] &= ~np.uint8(DIRTY)
            self.table.n_dirty = 0
            self.withdrawn += 1

    def state(self) -> State:
        """What differs from the baseline now, for ``restore``."""
        if self._compiled is not None:
            count = self.table.n_dirty * (2 + PAGE // 8)
            if len(self._room) < count:
                self._room = (ctypes.c_uint64 * count)()
            size = 8 * self._compiled.kwhy_state(ctypes.byref(self.table), self._room)
            return ctypes.string_at(self._room, size)
        out = []
        for slot in self._written.tolist():
            changed = (self._now[slot] != self._baseline[slot]).any(axis=1)
            if changed.any():
                mask = np.packbits(changed, bitorder="little").tobytes()
                out += [self._pages[slot].tobytes(), mask, self._now[slot, changed].tobytes()]
        return b"".join(out)

    def restore(self, state: State) -> None:
        """Go back to a ``state()`` of this memory, or of a copy of it in another process."""
        self.rollback()
        if self._compiled is not None:
            done = 0
            while done < len(state):
                done = self._compiled.kwhy_restore(
                    ctypes.byref(self.table), state, ctypes.c_size_t(len(state)),
                    ctypes.c_size_t(done),
                )  # fmt: skip
                if done < len(state):
                    self.place(int.from_bytes(state[done : done + 8], "little"))
            return
        words = np.frombuffer(state, np.uint64)
        at = 0
        while at < len(words):
            self.place(int(words[at]))
            self.grant(int(words[at]))
            changed = np.unpackbits(words[at + 1 : at + 2].view(np.uint8), bitorder="little")
            size = int(changed.sum()) * _LINE // 8
            lines = words[at + 2 : at + 2 + size].reshape(-1, _LINE // 8)
            self._now[self._slots[int(words[at])], changed.astype(bool)] = lines
            at += 2 + size


def host_memory(size: int) -> mmap.mmap:
    """Zeroed memory that is used as it is touched."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)


def shared_memory(size: int) -> mmap.mmap:
    """The same, one for this process and those that are forked from it."""
    return mmap.mmap(-1, size, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | _NORESERVE)


def _words(data: bytes) -> Any:
    return np.frombuffer(data, np.uint64).reshape(_LINES, _LINE // 8)


def _differences(before: bytes, after: bytes) -> list[tuple[int, int]]:
    """Ranges [low, high) in which two pages differ, neighbours within a word joined."""
    a, b = np.frombuffer(before, np.uint8), np.frombuffer(after, np.uint8)
    places = np.flatnonzero(a != b)
    if not len(places):
        return []
    cuts = np.flatnonzero(np.diff(places) > 8)
    lows = places[np.concatenate(([0], cuts + 1))]
    highs = places[np.concatenate((cuts, [len(places) - 1]))] + 1
    return list(zip(lows.tolist(), highs.tolist(), strict=True))


__all__ = ["Change", "Memory", "MissingMemory", "OutOfSlots", "Page", "State", "Table"]
