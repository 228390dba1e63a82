"""The instructions of a track, from its blocks: each distinct block is decoded once.

A *step* is one executed instruction, counted from 0. What is asked here of a step (its
instruction, which earlier step made a register's value, who wrote what it reads) is looked up, not
walked to, so that a question about a few steps of a long run costs little.
"""

import bisect
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from kwhy import arch as architectures
from kwhy.arch import Arch
from kwhy.emulate.track import Track
from kwhy.flow.cfg import annotate
from kwhy.flow.ir import Insn

FLAGS = "flags"


@dataclass(slots=True)
class Block:
    """Straight-line code as it was run. ``makers``: by register the instructions that set it."""

    insns: list[Insn]
    makers: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Access:
    """A memory access, the ``number``-th of the run; ``value`` little-endian."""

    number: int
    write: bool
    address: int
    size: int
    value: int


class Steps:
    """``starts[i]`` is the first step of the ``i``-th block that ran, ``ids[i]`` which of
    ``blocks`` that is."""

    def __init__(self, track: Track, arch: Arch, read: Callable[[int, int], bytes]) -> None:
        self.track, self.arch, self._read = track, arch, read
        # Kernel text lies within 48 bits of addresses, and no block is as long as a page.
        packed = (track.addresses << np.uint64(16)) | track.sizes
        _, first, ids = np.unique(packed, return_index=True, return_inverse=True)
        self.ids = ids.astype(np.int64)
        self.blocks = [
            decoded(arch, read(int(track.addresses[at]), size), int(track.addresses[at]), size)
            for at in first
            for size in (int(track.sizes[at]),)
        ]
        self._cut()
        lengths = np.array([len(block.insns) for block in self.blocks], np.int64)
        self.lengths = lengths[self.ids]
        ends = np.cumsum(self.lengths)
        self.starts = ends - self.lengths
        self._starts: list[int] = self.starts.tolist()
        self.count = int(ends[-1]) if len(ends) else 0
        self._made: dict[tuple[str, Any], list[int]] = {}

    def _cut(self) -> None:
        """A block that was left in its middle is another one, shorter."""
        addresses = self.track.addresses
        for cut in self.track.cuts:
            if cut.block < 0:
                continue
            insns = self.blocks[self.ids[cut.block]].insns
            before = [insn for insn in insns if insn.address < cut.at]
            if len(before) == len(insns) or insns[len(before)].address != cut.at:
                continue  # it was left from its end
            again = cut.block + 1 < len(addresses) and int(addresses[cut.block + 1]) == cut.at
            left = insns[: len(before) + (not again)]
            if not before and not again:  # a trap: the function was left with a result made up
                left = [replace(left[0], effects=(("forget", (self.arch.result,)),),
                                defines=frozenset({self.arch.result}))]  # fmt: skip
            self.ids[cut.block] = len(self.blocks)
            self.blocks.append(_with_makers(left))

    # -- which instruction -------------------------------------------------------------------------

    def place(self, step: int) -> tuple[int, int]:
        """The block that a step is in, counted in the order they ran, and the place in it."""
        number = bisect.bisect_right(self._starts, step) - 1
        return number, step - self._starts[number]

    def insn(self, step: int) -> Insn:
        """The instruction of a step."""
        number, at = self.place(step)
        insns: list[Insn] = self.blocks[self.ids[number]].insns
        return insns[at]

    def bytes_of(self, insn: Insn) -> bytes:
        """An instruction's machine code."""
        return self._read(insn.address, insn.size)

    @cached_property
    def addresses(self) -> list[int]:
        """The address of each step's instruction."""
        found: list[int] = self.spread(
            [[insn.address for insn in block.insns] for block in self.blocks], np.uint64
        ).tolist()
        return found

    def spread(self, by_block: list[list[Any]], kind: Any) -> Any:
        """An array over all steps of what is given for each instruction of each block."""
        lengths = np.array([len(items) for items in by_block], np.int64)
        flat = np.array([item for items in by_block for item in items], kind)
        begin = (np.cumsum(lengths) - lengths)[self.ids]
        return flat[np.repeat(begin - self.starts, self.lengths) + np.arange(self.count)]

    def of_blocks(self, by_number: Any) -> Any:
        """An array over all steps of what is given for each block that ran."""
        return np.repeat(by_number, self.lengths)

    @cached_property
    def branches(self) -> list[int]:
        """The steps that are conditional jumps or moves."""
        asks = [[insn.kind in ("branch", "select") for insn in b.insns] for b in self.blocks]
        found: list[int] = np.flatnonzero(self.spread(asks, bool)).tolist()
        return found

    # -- registers ---------------------------------------------------------------------------------

    def maker(self, name: str, step: int, within: Any = None) -> int | None:
        """The last step before ``step`` that set a register; None: none did.

        ``within``: only in these blocks (numbers, an array under a key: (key, array)).
        """
        number, at = self.place(step) if step < self.count else (len(self._starts), 0)
        if at:
            mine: list[int] = self.blocks[self.ids[number]].makers.get(name, [])
            before = bisect.bisect_left(mine, at)
            if before:
                return self._starts[number] + mine[before - 1]
        key = (name, None if within is None else within[0])
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = self._makers(name, None if within is None else within[1])
        limit = self._starts[number] if number < len(self._starts) else self.count
        before = bisect.bisect_left(made, limit)
        return made[before - 1] if before else None

    def _makers(self, name: str, numbers: Any) -> list[int]:
        """Of each block (of ``numbers``) the last step that set a register, if one did."""
        last = np.array([block.makers.get(name, (-1,))[-1] for block in self.blocks], np.int64)
        if numbers is None:
            numbers = np.arange(len(self.ids))
        at = last[self.ids[numbers]]
        found: list[int] = (self.starts[numbers] + at)[at >= 0].tolist()
        return found

    # -- memory ------------------------------------------------------------------------------------

    @cached_property
    def _accesses(self) -> tuple[Any, Any]:
        """The accesses, and the step of each. Those of an instruction that was begun, left and
        begun anew are left out the first time."""
        accesses = self.track.accesses
        lengths = np.array([len(block.insns) for block in self.blocks], np.int64)
        keys = np.array(
            [
                number << 16 | (insn.address - block.insns[0].address) & 0xFFFF
                for number, block in enumerate(self.blocks)
                for insn in block.insns
            ],
            np.int64,
        )
        blocks = accesses["block"].astype(np.int64)
        wanted = self.ids[blocks] << 16 | accesses["offset"]
        found = np.searchsorted(keys, wanted, "right") - 1
        whole = keys[found] == wanted
        begin = (np.cumsum(lengths) - lengths)[self.ids[blocks]]
        return accesses[whole], (self.starts[blocks] + found - begin)[whole]

    @property
    def _access_steps(self) -> Any:
        return self._accesses[1]

    def first_access(self, step: int) -> int:
        """The number of the first access that ``step`` or a later one made."""
        return int(np.searchsorted(self._access_steps, step))

    def accesses(self, step: int) -> list[Access]:
        """What a step read and wrote, in order."""
        low = self.first_access(step)
        high = int(np.searchsorted(self._access_steps, step, "right"))
        return [self.access(number) for number in range(low, high)]

    def access(self, number: int) -> Access:
        """One access."""
        value, address, _block, _offset, size, write = self._accesses[0][number].tolist()
        return Access(number, bool(write), address, size, value)

    def written(self, since: int) -> Iterator[Access]:
        """The writes from access number ``since`` on."""
        for number in np.flatnonzero(self._accesses[0]["write"][since:]).tolist():
            yield self.access(since + number)

    def stored(self, values: range, before: int) -> Iterator[Access]:
        """The writes of words before access number ``before`` whose value is one of these."""
        accesses = self._accesses[0][:before]
        whole = (accesses["write"] == 1) & (accesses["size"] == 8)
        inside = (accesses["value"] >= values.start) & (accesses["value"] < values.stop)
        for number in np.flatnonzero(whole & inside).tolist():
            yield self.access(number)

    def access_step(self, number: int) -> int:
        """The step that made an access."""
        return int(self._access_steps[number])

    @cached_property
    def _writes(self) -> tuple[Any, Any]:
        """Addresses of 8-byte words that were written, sorted, each with the access's number."""
        accesses = self._accesses[0]
        numbers = np.flatnonzero(accesses["write"])
        begin = accesses["address"][numbers] >> np.uint64(3)
        last = accesses["address"][numbers] + accesses["size"][numbers] - np.uint64(1)
        two = last >> np.uint64(3) != begin
        words = np.concatenate((begin, begin[two] + np.uint64(1)))
        numbers = np.concatenate((numbers, numbers[two]))
        order = np.lexsort((numbers, words))
        return words[order], numbers[order]

    def writers(self, address: int, size: int, before: int) -> list[Access]:
        """The writes before access number ``before`` that made these bytes, the last first."""
        words, numbers = self._writes
        left = set(range(address, address + size))
        found: dict[int, Access] = {}
        for word in range(address >> 3, (address + size - 1 >> 3) + 1):
            mine = {byte for byte in left if byte >> 3 == word}
            low = int(np.searchsorted(words, np.uint64(word)))
            high = int(np.searchsorted(words, np.uint64(word), "right"))
            at = low + int(np.searchsorted(numbers[low:high], before))
            while mine and at > low:
                at -= 1
                write = self.access(int(numbers[at]))
                covered = mine & set(range(write.address, write.address + write.size))
                if covered:
                    found[write.number] = write
                    mine -= covered
        return [found[number] for number in sorted(found, reverse=True)]


def decoded(arch: Arch, code: bytes, address: int, size: int) -> Block:
    """A block of ``size`` bytes, of which ``code`` could be read; shared, not to be changed."""
    return _decoded(arch.name, code, address, size)


@functools.lru_cache(maxsize=1 << 14)
def _decoded(name: str, code: bytes, address: int, size: int) -> Block:
    arch = architectures.of(name)
    insns = arch.decode(code, address)
    for insn in insns:
        annotate(insn, arch)
    end = insns[-1].end if insns else address
    if end < address + size:  # what cannot be decoded may have changed any register
        every = frozenset((*arch.registers, FLAGS)) - {arch.stack}
        effects = (("forget", tuple(sorted(every - {FLAGS}))),)
        insns.append(Insn(end, address + size - end, "(unknown)", effects=effects, defines=every))
    return _with_makers(insns)


def _with_makers(insns: list[Insn]) -> Block:
    block = Block(insns)
    for at, insn in enumerate(insns):
        names = set(insn.defines)
        if insn.kind == "select":
            names |= {effect[1] for effect in insn.effects if effect[0] == "set"}
        for name in names:
            block.makers.setdefault(name, []).append(at)
    return block
