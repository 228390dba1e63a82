"""The processor: runs kernel code on a :class:`Memory` until it returns or cannot go on.

What a machine cannot decide by itself it asks its :class:`Scene`: a page that is not there, a
planted trap, an undefined instruction.  Nothing here knows of kernels.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import unicorn
from unicorn import UcError

from kwhy.arch import x86_64_emulation as arch
from kwhy.case.evidence import PAGE, MissingMemory
from kwhy.emulate import hooks
from kwhy.emulate.memory import Memory, OutOfSlots
from kwhy.emulate.registers import Counter, Runner
from kwhy.emulate.track import Track
from kwhy.errors import KwhyError

MAX_BLOCKS = hooks.MAX_BLOCKS
_MASK = (1 << 64) - 1

Kind = Literal["returned", "stopped", "fault", "exception", "bound", "unsupported"]


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended. ``reason`` is a sentence's end ("it would sleep in schedule()")."""

    kind: Kind
    address: int
    reason: str = ""


class Scene(Protocol):
    """Who decides where the processor alone cannot; each may change registers through ``machine``.

    None means: go on at the program counter; an End ends the run.
    """

    def fault(
        self, machine: "Machine", address: int, write: bool, why: str
    ) -> End | None: ...  # the access at the program counter has no page
    def trap(self, machine: "Machine", address: int) -> End | None: ...
    def undefined(self, machine: "Machine", address: int) -> End | None: ...
    def counter(self) -> int: ...  # what the time-stamp counter shows, always the same


@dataclass(slots=True)
class _Event:
    """Why the emulator left its loop."""

    kind: Literal["fault", "trap", "turn", "exception", "undefined", "bound", "port", "full"]
    address: int = 0
    write: bool = False
    text: str = ""


GENERAL = arch.GENERAL
_NONE = (0,) * len(arch.ARGUMENTS)
_GENERAL_IDS = [arch.REGISTERS[name] for name in GENERAL]


class Machine:
    """One processor on ``memory``. With ``detail`` registers and accesses are tracked too.

    ``halt``: the address of a halt instruction to which only calls return. Runs until there are
    cheapest: what was made of the code at another end is made anew each time.
    """

    def __init__(
        self, memory: Memory, scene: Scene, detail: bool = False, halt: int = 0
    ) -> None:
        self.memory = memory
        self.scene = scene
        self._track: Track | None = Track()
        self._limit = MAX_BLOCKS
        self._event: _Event | None = None
        self._error: BaseException | None = None
        self._withdrawn = 0
        self._uc = arch.engine()
        self._uc.ctl_set_tlb_mode(unicorn.UC_TLB_VIRTUAL)
        # The arena twice, for data and for code: each store to where code may run would be looked
        # into by the emulator, for translated code that it changes.
        data = unicorn.UC_PROT_READ | unicorn.UC_PROT_WRITE
        self._uc.mem_map_ptr(0, memory.size, data, memory.host)
        code = unicorn.UC_PROT_READ | unicorn.UC_PROT_EXEC
        self._uc.mem_map_ptr(memory.size, memory.size, code, memory.host)
        self._uc.hook_add(unicorn.UC_HOOK_INTR, self._interrupt)
        self._uc.hook_add(unicorn.UC_HOOK_INSN_INVALID, self._invalid)
        for instruction in arch.PORT_INSTRUCTIONS:
            self._uc.hook_add(unicorn.UC_HOOK_INSN, self._port, aux1=instruction)
        self._uc.ctl_exits_enabled(True)
        self._exits: list[int] = []
        self._halt = halt
        self._halted = End("returned", halt)
        self._runner = Runner(self._uc)
        self._counter = Counter(self._uc, scene.counter)
        self._hooks = hooks.attach(self._uc, memory, _GENERAL_IDS, detail, halt)
        # Asked after the compiled hooks, which know the pages that are here already.
        self._uc.hook_add(unicorn.UC_HOOK_TLB_FILL, self._fill)

    # -- registers ---------------------------------------------------------------------------------

    def get(self, register: str) -> int:
        """A register by its architectural name."""
        value: int = self._uc.reg_read(arch.REGISTERS[register])
        return value

    def set(self, register: str, value: int) -> None:
        """Write a register."""
        self._uc.reg_write(arch.REGISTERS[register], value & _MASK)

    def forget(self, address: int, size: int) -> None:
        """Code there was changed: what was made of it before is not to run again."""
        self._uc.ctl_remove_cache(address, address + size)

    def result(self) -> int:
        """What the function that ran last has returned, in 64 bits."""
        return self._runner.result

    def enter(self, arguments: Sequence[int], stack: int) -> None:
        """The registers as at a function's entry: up to six ``arguments``, the stack pointer."""
        self._runner.give((*arguments, *_NONE[len(arguments) :], stack, arch.ENABLED_FLAGS))

    # -- running -----------------------------------------------------------------------------------

    def watch(self, addresses: Iterable[int], tell: Callable[[int], None]) -> None:
        """Call ``tell`` with the address before each execution of one of these instructions.

        For code that has not run yet.
        """
        for address in addresses:
            self._uc.hook_add(
                unicorn.UC_HOOK_CODE, lambda _uc, at, _size, _data: tell(at),
                begin=address, end=address,
            )  # fmt: skip

    def turn(self, ways: Mapping[tuple[int, int], int]) -> None:
        """Make branches go the other way: by address and execution (from 0) the next instruction.

        For code that has not run yet.
        """
        for address in {address for address, _ in ways}:
            runs = itertools.count()

            def leave(_uc: Any, at: int, _size: int, _data: Any, runs: Any = runs) -> None:
                target = ways.get((at, next(runs)))
                if target is not None:
                    self._event = _Event("turn", target)
                    self._uc.emu_stop()

            self._uc.hook_add(unicorn.UC_HOOK_CODE, leave, begin=address, end=address)

    def run(self, start: int, until: int, limit: int = MAX_BLOCKS) -> End:
        """Run from ``start`` until control reaches ``until``, at most ``limit`` basic blocks.

        Errors of the memory's source other than MissingMemory pass through.
        """
        self._limit = limit
        self._hooks.begin(limit)
        self._track = None
        return self._run(start, until)

    @property
    def track(self) -> Track:
        """What the last run did; made when it is asked for."""
        if self._track is None:
            self._track = self._hooks.track()
        return self._track

    def _run(self, start: int, until: int) -> End:
        if self._withdrawn != self.memory.withdrawn:
            self._withdrawn = self.memory.withdrawn
            self._uc.ctl(unicorn.UC_CTL_TLB_FLUSH, unicorn.UC_CTL_IO_WRITE)
        exits = [] if until == self._halt else [until]
        if exits != self._exits:
            self._uc.ctl_set_exits(exits)
            self._exits = exits
        here = start
        while True:
            self._event = None
            status, here = self._runner.run(here, until)
            if self._error is not None:
                error_, self._error = self._error, None
                raise error_
            if self._hooks.full:
                self._event = _Event("bound", here)
            if self._event is None:
                if not exits and here == until + len(arch.HALT):
                    return self._halted
                if here == until:
                    return End("returned", here)
                return End("unsupported", here, self._stopped(status, here))
            self._hooks.cut(self._event.address if self._event.kind == "trap" else here)
            end = self._decide(self._event, here)
            if end is not None:
                return end
            here = self.get(arch.PC)

    def _stopped(self, status: int, here: int) -> str:
        """Why the emulator stopped by itself."""
        if status:
            return str(UcError(status))
        if self.memory.read(here - len(arch.HALT), len(arch.HALT)) == arch.HALT:
            return "it would halt the processor until an interrupt comes"
        return "the emulator stopped without a reason"

    def _decide(self, event: _Event, here: int) -> End | None:
        if event.kind == "fault":
            return self.scene.fault(self, event.address, event.write, event.text)
        if event.kind == "trap":
            return self.scene.trap(self, event.address)
        if event.kind == "turn":
            self.set(arch.PC, event.address)
            return None
        if event.kind == "undefined":
            return self.scene.undefined(self, event.address)
        if event.kind == "bound":
            return End("bound", here, f"it did not return within {self._limit} basic blocks")
        if event.kind == "full":
            return End("bound", here, "it touched more memory than the emulator holds")
        if event.kind == "port":
            return End("stopped", here, "it would do port I/O")
        return End("exception", here, f"it would raise a {event.text}")

    # -- hooks -------------------------------------------------------------------------------------

    def _fill(self, uc: Any, address: int, access: int, entry: Any, _data: Any) -> bool:
        write = access == unicorn.UC_MEM_WRITE
        try:
            place = self.memory.place(address & -PAGE)
            if write and not self.memory.writable(address):
                self._event = _Event("fault", address, True, "it is mapped read-only")
                return False
        except MissingMemory as error:
            self._event = _Event("fault", address, write, error.why)
            return False
        except OutOfSlots:
            self._event = _Event("full", address)
            return False
        except (KwhyError, KeyboardInterrupt) as error:
            self._error = error
            return False
        entry.paddr = place
        entry.perms = unicorn.UC_PROT_READ
        # A page is granted for writing at its first write: that is how the dirty ones are known.
        if write:
            self.memory.grant(address)
        if access == unicorn.UC_MEM_FETCH:
            entry.paddr += self.memory.size
            entry.perms |= unicorn.UC_PROT_EXEC
        elif self.memory.granted(address):
            entry.perms |= unicorn.UC_PROT_WRITE
        return True

    def _interrupt(self, uc: Any, number: int, _data: Any) -> None:
        here = self.get(arch.PC)
        if number == arch.TRAP_VECTOR:
            self._event = _Event("trap", here - len(arch.TRAP))
        else:
            name = arch.VECTORS.get(number, f"exception {number}")
            self._event = _Event("exception", here, text=name)
        uc.emu_stop()

    def _invalid(self, uc: Any, _data: Any) -> bool:
        self._event = _Event("undefined", self.get(arch.PC))
        return False

    def _port(self, uc: Any, *_rest: Any) -> int:
        self._event = _Event("port", self.get(arch.PC))
        uc.emu_stop()
        return 0
