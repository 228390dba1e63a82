"""Architecture facts, one package per architecture.

A diagnosis never names a register: it asks the :class:`Arch` of the kernel at hand.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kwhy.flow.ir import Insn

STACK_POINTERS = frozenset({"rsp"})
"""The stack pointers of all architectures: what a register so named points to is a stack."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """Where a virtual address lies: physical address of its byte, and what may be done there.

    ``device``: mapped uncached, as ioremap() does; its content is no memory.
    """

    physical: int
    writable: bool
    user: bool
    device: bool


@dataclass(frozen=True, slots=True)
class DwarfRegisters:
    """Registers as DWARF numbers them.

    ``saved``: those that a call preserves, by their names in ``struct pt_regs``. ``stack``,
    ``frame`` and ``pc``: the stack and the frame pointer, and where a frame goes on.
    """

    saved: Mapping[int, str]
    stack: int
    frame: int
    pc: int


@dataclass(frozen=True, slots=True)
class Arch:
    """What the analysis needs to know of one architecture.

    ``arguments`` are the registers of the calling convention in order, ``result`` the register of
    the returned value, ``clobbered`` those that a call may change. ``syscall_arguments`` are the
    members of ``struct pt_regs`` that hold a system call's arguments, as byte offsets;
    ``syscall_result`` are the possible places of its result, from the end of the kernel stack.
    ``syscall_table`` is the table of functions that ``syscall_dispatch`` calls, by number;
    ``syscalls`` has their names. A stack whose outermost functions begin with one of
    ``syscall_entries`` is that of a system call.
    ``probe_registers`` maps register names to those of kprobe events, ``sample_registers`` to
    their bits in a perf sample. ``is_interrupt_entry``: whether a frame of that name means that an
    interrupt is being handled on top of whatever ran; ``fault_entry`` is the frame of a page fault.
    ``stack_size``: bytes of a thread's kernel
    stack or one for interrupts, and what it is aligned to.
    """

    name: str
    registers: tuple[str, ...]
    arguments: tuple[str, ...]
    result: str
    stack: str
    stack_size: int
    clobbered: frozenset[str]
    syscall_arguments: tuple[int, ...]
    syscall_result: tuple[int, ...]
    syscall_number: int
    syscall_prefixes: tuple[str, ...]
    syscall_table: str
    syscall_dispatch: str
    syscall_entries: tuple[str, ...]
    syscalls: Mapping[int, str]
    decode: Callable[[bytes, int], list[Insn]]
    trace_site: Callable[[bytes], int | None]
    is_tracer: Callable[[str], bool]
    condition_holds: Callable[[str, int], bool | None]
    flags_for: Callable[[str, bool], int | None]
    is_return_thunk: Callable[[str], bool]
    indirect_thunk: Callable[[str], str | None]
    probe_registers: dict[str, str]
    sample_registers: dict[str, int]
    is_interrupt_entry: Callable[[str], bool]
    fault_entry: str
    reads: Callable[[bytes, int], set[str]]
    """The registers that one instruction (bytes, address) reads, also if it has no model."""
    table_levels: Callable[[Mapping[str, str]], int]
    """How many levels page tables have, by VMCOREINFO."""
    walk: Callable[[Callable[[int, int], bytes], int, int, int], Mapped | None]
    """The mapping of a virtual address: how to read physical memory, the table, its levels, it."""
    user_code: tuple[str, int]
    """The register that tells programs of this width by its value in ``struct pt_regs``."""
    dwarf: DwarfRegisters


def of(name: str) -> Arch:
    """The facts of the architecture that ``uname -m`` calls ``name``; KeyError if unknown."""
    if name == "x86_64":
        from kwhy.arch import x86_64

        return x86_64.ARCH
    raise KeyError(name)
