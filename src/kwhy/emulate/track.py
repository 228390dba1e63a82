"""What ran: the facts that a machine's hooks write down."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Access:
    """A memory access by the instruction at index ``step`` of the trace; ``value`` little-endian.

    What a write stores, what a read finds.
    """

    step: int
    write: bool
    address: int
    size: int
    value: int


@dataclass(slots=True)
class Track:
    """What ran: basic blocks as (address, size in bytes), and in detail each instruction.

    ``registers[i]`` are the general registers when instruction ``entries[i]`` of ``steps`` began a
    block. The three lists of detail stay empty when nobody asked for them.
    """

    blocks: list[tuple[int, int]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    accesses: list[Access] = field(default_factory=list)
    registers: dict[int, tuple[int, ...]] = field(default_factory=dict)
