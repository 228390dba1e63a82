"""What ran: the facts that a machine's hooks write down."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

ACCESS = np.dtype(
    [
        ("value", np.uint64),
        ("address", np.uint64),
        ("block", np.uint32),
        ("offset", np.uint16),
        ("size", np.uint8),
        ("write", np.uint8),
    ]
)
"""A memory access: by the instruction at ``offset`` in the ``block``-th block; the (virtual)
address and the bytes, little-endian, that a write stores or a read finds; of at most 8."""


@dataclass(slots=True)
class Cut:
    """A block that was left in its middle, at the address ``at``."""

    block: int
    at: int


@dataclass
class Track:
    """What ran: basic blocks by address and size in bytes; in detail registers and accesses.

    ``registers[i]`` are the general registers when block ``i`` began, ``accesses`` is an array of
    ACCESS in the order they happened. Both are empty when nobody asked for detail. The instructions
    that ran are those of the blocks, but for ``cuts``.
    """

    addresses: Any = field(default_factory=lambda: np.empty(0, np.uint64))
    sizes: Any = field(default_factory=lambda: np.empty(0, np.uint32))
    registers: Any = field(default_factory=lambda: np.empty((0, 0), np.uint64))
    accesses: Any = field(default_factory=lambda: np.empty(0, ACCESS))
    cuts: tuple[Cut, ...] = ()

    @cached_property
    def blocks(self) -> list[tuple[int, int]]:
        """The blocks as (address, size)."""
        return list(zip(self.addresses.tolist(), self.sizes.tolist(), strict=True))

    @cached_property
    def distinct(self) -> dict[tuple[int, int], int]:
        """Each block as (address, size), once, and how often it ran."""
        # Kernel text lies within 48 bits of addresses, and no block is as long as a page.
        packed = (self.addresses << np.uint64(16)) | self.sizes
        _, first, times = np.unique(packed, return_index=True, return_counts=True)
        found = zip(self.addresses[first].tolist(), self.sizes[first].tolist(), strict=True)
        return dict(zip(found, times.tolist(), strict=True))
