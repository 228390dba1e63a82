"""The kernel around the code that runs: pages, the processor's own data, the task, what may not be.

The stack is one of our own, so that the sleeping task's frames (lists lead into them) stay whole.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from kwhy.arch import x86_64_emulation as arch
from kwhy.case.evidence import PAGE, MissingMemory
from kwhy.emulate import bugs, limits
from kwhy.emulate.asleep import Sleep, Sleeps
from kwhy.emulate.ground import Ground
from kwhy.emulate.machine import MAX_BLOCKS, End, Machine
from kwhy.emulate.memory import Memory, Page
from kwhy.errors import FeatureError, UsageError

SCRATCH = arch.HOLE
STACK = arch.HOLE + 0x1000000
RETURN = arch.HOLE + 0x2000000 + PAGE // 2
STACK_END_MAGIC = 0x57AC6E9D  # include/uapi/linux/magic.h
PREEMPT_ENABLED = 0x80000000  # arch/x86/include/asm/preempt.h: PREEMPT_NEED_RESCHED inverted
_AREA_FIELDS = ("vm_start", "vm_flags")
_VM_READ, _VM_WRITE = 1, 2  # include/linux/mm.h
_MASK = (1 << 64) - 1
_INSTRUCTION = 15
_NS = 1_000_000_000
_CLOCK = ("xtime_sec", "tkr_mono.xtime_nsec", "tkr_mono.base", "ktime_sec", "tkr_mono.shift",
          "xtime_interval")  # fmt: skip
_TIMEKEEPER = 8
_MAX_SCHEDULE_TIMEOUT = (1 << 63) - 1  # include/linux/sched.h: for ever
_JOBCTL_STOPPED = 26  # and JOBCTL_TRACED, 27: include/linux/sched/jobctl.h, since 5.19
_TOP_COPY = 512
"""Bytes at the top of a kernel stack that hold the registers saved at kernel entry."""


@dataclass(frozen=True, slots=True)
class _Now:
    """What the timekeeper shows (struct timekeeper), and where it keeps the first four: seconds of
    the day, the fraction of the second, nanoseconds and seconds of CLOCK_MONOTONIC; fractions and
    the length of a tick are in ns << ``shift``."""

    places: tuple[int, int, int, int]
    wall: int
    fraction: int
    base: int
    monotonic: int
    shift: int
    tick: int
    jiffies: int

    def ticks_since(self, monotonic: int) -> int:
        """How many ticks ago the last one before that time was."""
        return -(-(((self.base - monotonic) << self.shift) + self.fraction) // self.tick)


class KernelScene:
    """Memory and machine of one CPU and one task of a kernel.

    ``task`` is the address of a task_struct, None for the CPU's own at the time. ``skipped`` and
    ``notes`` tell what was left out, ``asked_time`` whether a clock was read. Raises FeatureError
    when the kernel's layout is not known.
    """

    def __init__(self, ground: Ground, cpu: int, task: int | None, detail: bool = False) -> None:
        self.ground = ground
        self.kernel = ground.kernel
        self.cpu = cpu
        self.skipped: list[str] = []
        self.notes: list[str] = []
        self.asked_time = False
        self.sleeps = Sleeps(())
        """Those that a run goes on from, as woken; at any other it ends."""
        self._free = SCRATCH
        self.memory = Memory(self._page)
        self._word = self.memory.reader(8)
        self.machine = Machine(self.memory, self, detail, RETURN)
        self.percpu = self.percpu_base(cpu)
        self._current = self._place_of("pcpu_hot", "current_task")
        self._given = task is not None
        self.task = task or self.word(self._current)
        self._set()

    # -- what the code sees ------------------------------------------------------------------------

    def _set(self) -> None:
        """The scene: stack, return page, this task on this CPU, interrupts and preemption on."""
        memory = self.memory
        memory.add(RETURN & -PAGE, arch.HALT * PAGE, False)
        top = STACK + arch.STACK_SIZE
        for page in range(STACK, top, PAGE):
            memory.add(page, b"")
        own = self._task_field("stack")
        self._kernel_stack = self.word(own)
        old_top = self._kernel_stack + arch.STACK_SIZE
        try:
            memory.poke(top - _TOP_COPY, self.ground.memory.read(old_top - _TOP_COPY, _TOP_COPY))
        except MissingMemory:
            if self._given:
                self.notes.append("the task's saved registers cannot be read")
        memory.poke(STACK, STACK_END_MAGIC.to_bytes(8, "little"))
        memory.poke(own, STACK.to_bytes(8, "little"))
        self._resume()
        memory.poke(self._current, self.task.to_bytes(8, "little"))
        for names, value, size in (
            (("pcpu_hot.top_of_stack", "cpu_current_top_of_stack"), top, 8),
            (("pcpu_hot.preempt_count", "__preempt_count"), PREEMPT_ENABLED, 4),
        ):
            place = self._maybe_place(*names)
            if place is not None:
                memory.poke(place, value.to_bytes(size, "little"))
        self.machine.set(arch.CPU_BASE, self.percpu)

    def _resume(self) -> None:
        """A task that runs is neither asleep nor stopped for its tracer, which also makes it
        ``frozen`` (ptrace_stop(), kernel/signal.c) and so seem to have a signal."""
        self.memory.poke(self._task_field("__state", "state"), bytes(4))
        types = self.kernel.types
        task = types.named("struct task_struct")
        for name, low, width in (("jobctl", _JOBCTL_STOPPED, 2), ("frozen", 0, 1)):
            field = types.field(task, name) if task else None
            if field is None:
                continue
            place = self.task + field.offset
            mask = (1 << width) - 1 << low + (field.bits[0] if field.bits else 0)
            with contextlib.suppress(MissingMemory):  # an older case does not have it
                word = self.word(place)
                if word & mask:
                    self.memory.poke(place, (word & ~mask).to_bytes(8, "little"))

    def keep_stack(self) -> None:
        """Let the task have its kernel stack: for a thread that is gone on with as it runs."""
        self.memory.poke(self._task_field("stack"), self._kernel_stack.to_bytes(8, "little"))

    @cached_property
    def stack_top(self) -> int:
        """Where a called function's stack begins: below the saved registers."""
        return STACK + arch.STACK_SIZE - _TOP_COPY

    @cached_property
    def saved_registers(self) -> int:
        """Where the registers of the user program are saved: struct pt_regs at the stack's top.

        A kernel that knows FRED leaves room above (14619d912b65 "x86/fred: FRED entry/exit and
        dispatch code", 6.9).
        """
        room = 16 if self.kernel.symbols.address("asm_fred_entrypoint_user") else 0
        return STACK + arch.STACK_SIZE - room - arch.PT_REGS_SIZE

    def maps(self, address: int) -> bool:
        """Whether the task maps a user address now."""
        table = self._user_table
        return table is not None and self.ground.user_mapping(table, address) is not None

    def word(self, address: int) -> int:
        """Eight bytes of memory as the code would read them now."""
        return self._word(address)

    def percpu_base(self, cpu: int) -> int:
        """What is added to a per-CPU variable's address. Raises UsageError for no such CPU."""
        table = self.kernel.symbols.address("__per_cpu_offset")
        if table is None:
            raise FeatureError("the kernel's per-CPU areas cannot be found", "kallsyms")
        count = self._count_of_cpus()
        if not 0 <= cpu < count:
            raise UsageError(f"--cpu {cpu}: the target has CPUs 0 to {count - 1}")
        return self.word(table + 8 * cpu)

    def _count_of_cpus(self) -> int:
        place = self.kernel.symbols.address("nr_cpu_ids")
        if place is None:
            return 1
        return int.from_bytes(self.memory.read(place, 4), "little")

    def _maybe_place(self, *names: str) -> int | None:
        """Address of this CPU's copy of the first variable (``struct.field``) that exists."""
        types = self.kernel.types
        for name in names:
            variable, _, path = name.partition(".")
            symbols = self.kernel.symbols
            found = symbols.percpu.named(variable)
            symbol = symbols.percpu.symbol(found[0]) if found else symbols.vmlinux_symbol(variable)
            if symbol is None:
                continue
            offset = 0
            if path:
                kind = types.variable(variable) or types.named(f"struct {variable}")
                field = types.field(kind, path) if kind else None
                if field is None:
                    continue
                offset = field.offset
            return (symbol.address + offset + self.percpu) & ((1 << 64) - 1)
        return None

    def _place_of(self, *names: str) -> int:
        found = self._maybe_place(f"{names[0]}.{names[1]}", names[1])
        if found is None:
            self._offset_in_task("stack")  # without any types that is what to say
            raise FeatureError(f"the kernel's variable {names[-1]} cannot be found", "kallsyms")
        return found

    def _task_field(self, *names: str) -> int:
        return self.task + self._offset_in_task(*names)

    def _offset_in_task(self, *names: str) -> int:
        types = self.kernel.types
        task = types.named("struct task_struct")
        for name in names:
            field = types.field(task, name) if task else None
            if field is not None:
                return field.offset
        raise FeatureError(
            "the layout of the kernel's structures is not known: it has no BTF that can be read; "
            "give its debug symbols with --debuginfo PATH",
            "btf",
        )

    # -- pages -------------------------------------------------------------------------------------

    def _page(self, page: int) -> Page:
        if page >= arch.USER_END:
            return self.ground.page(page)
        mapping = self.ground.user_mapping(self._user_table, page) if self._user_table else None
        if mapping is None:
            raise MissingMemory(page, "the task has no such page in memory")
        return self.ground.user_page(page, mapping)

    @cached_property
    def _user_table(self) -> int | None:
        """Kernel address of the task's top-level page table, None for a kernel thread."""
        types = self.kernel.types
        space = self.word(self._task_field("mm"))
        kind = types.named("struct mm_struct")
        field = types.field(kind, "pgd") if kind else None
        if not space or field is None:
            return None
        return self.word(space + field.offset)

    # -- what a machine asks -----------------------------------------------------------------------

    def trap(self, machine: Machine, address: int) -> End | None:
        """A planted trap, or a probe of somebody's in the live code."""
        name = self.ground.planted.get(address)
        if name is None:
            return self._unprobe(machine, address)
        if name in limits.STOPS:
            sleep = self.sleeps.met(address, self.word(machine.get(arch.STACK)))
            if sleep is not None:
                self._wake(machine, name, sleep)
            elif name == "schedule" and self._runs():
                self._leave(machine, 0)
            else:
                return End("stopped", address, f"{limits.STOPS[name]} ({name}())")
        elif name in limits.CLOCKS:
            self.asked_time = True
            self._leave(machine, self._last_cycle)
        else:
            if name not in self.skipped and name not in limits.YIELDS:
                self.skipped.append(name)
            self._leave(machine, self._woken(machine) if name in limits.WAKES else 0)
        return None

    def _runs(self) -> bool:
        """Whether the task is not about to sleep: it lets others run and goes on (sched_yield)."""
        state = self.word(self._task_field("__state", "state"))
        return not state & 0xFFFFFFFF

    def _wake(self, machine: Machine, name: str, sleep: Sleep) -> None:
        """Return from a sleep, at the time when it was over."""
        left = machine.get(arch.ARGUMENTS[0])
        if left < _MAX_SCHEDULE_TIMEOUT and name == "schedule_timeout":
            left = max(0, left - self._ticks(sleep.begin, sleep.end))
        self.set_clock(sleep.end)
        self.memory.poke(self._task_field("__state", "state"), bytes(4))
        self._leave(machine, left)

    def _woken(self, machine: Machine) -> int:
        """Whether the task of the first argument is asleep in a state of the second."""
        task, states = (machine.get(register) for register in arch.ARGUMENTS[:2])
        state = self.word(task + self._offset_in_task("__state", "state"))
        return int(state & states & 0xFFFFFFFF != 0)

    def _leave(self, machine: Machine, result: int) -> None:
        """Return from the function that has just been entered."""
        stack = machine.get(arch.STACK)
        machine.set(arch.PC, self.word(stack))
        machine.set(arch.STACK, stack + 8)
        machine.set(arch.RESULT, result)

    def _unprobe(self, machine: Machine, address: int) -> End | None:
        original = self.kernel.data_image(address, len(arch.TRAP))
        if original is None or original == arch.TRAP:
            return End("stopped", address, "a probe is planted there, and what it covers is lost")
        self.memory.poke(address, original)
        machine.forget(address, len(original))
        self.notes.append(f"a probe at {self.where(address)} was taken out of the copy")
        machine.set(arch.PC, address)
        return None

    @cached_property
    def _last_cycle(self) -> int:
        """The clock source's value at the last tick (struct timekeeper, tkr_mono.cycle_last)."""
        place = self._clock("tkr_mono.cycle_last")
        if place is None:
            self.notes.append("the time of the last tick is not known: clocks read 0")
            return 0
        return self.word(place)

    def _clock(self, path: str) -> int | None:
        """Where the kernel's timekeeper has a field."""
        types, symbols = self.kernel.types, self.kernel.symbols
        kind = types.named("struct timekeeper")
        field = types.field(kind, path) if kind else None
        start = symbols.address("tk_core") or symbols.address("timekeeper_data")
        if field is None or start is None:
            return None
        # Both begin with a sequence counter, then the timekeeper (kernel/time/timekeeping.c).
        return start + _TIMEKEEPER + field.offset

    def set_clock(self, monotonic: int, before: bool = False) -> None:
        """Set the clocks to the last tick before a time of CLOCK_MONOTONIC (ns), if that is past;
        or to the one ``before`` that.

        A file's times are those of a tick, and the kernel compares them with the present one.
        """
        now = self._now
        if now is None:
            return
        ticks = max(0, now.ticks_since(monotonic)) + before
        second = _NS << now.shift
        moved = now.wall * second + now.fraction - ticks * now.tick
        back = now.wall - moved // second
        values = (moved // second, moved % second, now.base - back * _NS, now.monotonic - back)
        for place, value in zip(now.places, values, strict=True):
            self._write(place, value)
        symbols = self.kernel.symbols
        jiffies, floor = symbols.address("jiffies_64"), symbols.address("mg_floor")
        if jiffies is not None:
            self._write(jiffies, now.jiffies - ticks)
        if floor is not None:  # no time of a file has been later (kernel/time/timekeeping.c)
            self._write(floor, min(self.word(floor), values[2] + (values[1] >> now.shift)))

    def _ticks(self, begin: int, end: int) -> int:
        """How many ticks there were between two times of CLOCK_MONOTONIC (ns)."""
        now = self._now
        return now.ticks_since(begin) - now.ticks_since(end) if now else 0

    @cached_property
    def _now(self) -> _Now | None:
        """What the clocks show; None when they cannot be found, or do not tick."""
        places = [self._clock(name) for name in _CLOCK]
        wall, fraction, base, monotonic, shift, tick = places
        if None in places:
            return None
        assert wall and fraction and base and monotonic and shift and tick
        jiffies = self.kernel.symbols.address("jiffies_64")
        length = self.word(tick)
        if length <= 0:
            return None
        return _Now(
            (wall, fraction, base, monotonic),
            self.word(wall), self.word(fraction), self.word(base), self.word(monotonic),
            self.word(shift) & 0xFF, length, self.word(jiffies) if jiffies is not None else 0,
        )  # fmt: skip

    def put_user_pages(self, pages: Mapping[int, bytes]) -> None:
        """Let the task's memory have these pages, also where it has given them back since."""
        for page, data in pages.items():
            mapping = self.ground.user_mapping(self._user_table, page) if self._user_table else None
            self.memory.add(page, data, mapping is None or mapping.writable)

    def _write(self, address: int, value: int) -> None:
        self.memory.poke(address, (value & _MASK).to_bytes(8, "little"))

    def counter(self) -> int:
        """The time-stamp counter: as the clock read it last, so that time does not pass here."""
        return self._last_cycle

    def undefined(self, machine: Machine, address: int) -> End | None:
        """``ud2``: a WARN is passed over, a BUG ends the run (include/asm-generic/bug.h).

        Protection keys are what a processor may have and the emulated one has not.
        """
        code = self.instruction(address, len(arch.PKEYS_READ))
        if code in (arch.PKEYS_READ, arch.PKEYS_WRITE):
            if code == arch.PKEYS_READ:
                machine.set("rax", arch.PKEYS_DEFAULT)
                machine.set("rdx", 0)
            self.note("memory protection keys were taken to be those that a task begins with")
            machine.set(arch.PC, address + len(code))
            return None
        if code[:2] != arch.UNDEFINED:
            return End("unsupported", address, "the emulator does not know the instruction")
        if bugs.is_warning(self.kernel, address):
            self.skipped.append(f"WARN at {self.where(address)}")
            machine.set(arch.PC, address + len(arch.UNDEFINED))
            return None
        return End("exception", address, "it is a BUG: the kernel would die")

    def fault(self, machine: Machine, address: int, write: bool, why: str) -> End | None:
        """A page that is not there: as the kernel's own fault handler, if that would give up."""
        here = machine.get(arch.PC)
        if address < arch.USER_END and self._may_access(address, write):
            if address & -PAGE in self.memory.pages:
                self.memory.allow_writing(address)  # the kernel would copy a shared page first
                return None
            reason = f"user memory at {address:#x} would have to be brought in by a page fault"
            return End("fault", here, reason)
        for entry in self.kernel.exception_table(here, here + 1):
            registers = {name: machine.get(name) for name in arch.ARGUMENTS + ("rcx", "rax")}
            if entry.register and entry.register not in registers:
                registers[entry.register] = machine.get(entry.register)
            changed = arch.fixup(entry.kind, entry.register, entry.imm, registers)
            if changed is None:
                break
            for name, value in (changed | dict.fromkeys(entry.cleared, 0)).items():
                machine.set(name, value)
            machine.set(arch.PC, entry.fixup)
            return None
        try:
            code = self.instruction(here, _INSTRUCTION)
        except MissingMemory:
            return End("fault", here, f"it would jump to {here:#x}: {why}")
        if here == address:
            return End("fault", here, f"it would jump to {here:#x}: {why}")
        verb = "write" if write else "read"
        used = arch.accessed(code, here, machine.get)
        exact = next((a for a in used if a & -PAGE == address & -PAGE), address)
        return End("fault", here, f"it would {verb} at {exact:#x}: {why}")

    def _may_access(self, address: int, write: bool) -> bool:
        """Whether a memory area of the task covers a user address and allows the access.

        The kernel's own find_vma() tells, on a machine of its own.
        """
        types = self.kernel.types
        space = self.word(self._task_field("mm"))
        finder = self.kernel.symbols.named("find_vma", modules=False)
        area = types.named("struct vm_area_struct")
        start, flags = (types.field(area, name) if area else None for name in _AREA_FIELDS)
        if not space or not finder or start is None or flags is None:
            return False
        other = KernelScene(self.ground, self.cpu, self.task)
        end = other.enter(finder[0].address, [space, address])
        found = other.machine.get(arch.RESULT)
        if end.kind != "returned" or not found or other.word(found + start.offset) > address:
            return False
        wanted = _VM_WRITE if write else _VM_READ
        return bool(other.word(found + flags.offset) & wanted)

    def allocate(self, data: bytes) -> int:
        """Memory of our own that holds ``data``; its address."""
        address = self._free
        self._free += (len(data) + 15) & ~15
        for page in range(address & -PAGE, self._free + PAGE, PAGE):
            if page not in self.memory.pages:
                self.memory.add(page, b"")
        self.memory.poke(address, data)
        return address

    def enter(self, function: int, arguments: Sequence[int], limit: int = MAX_BLOCKS) -> End:
        """Call the function at an address with integer arguments, as the convention has it."""
        machine = self.machine
        stack, count = self.stack_top, len(arch.ARGUMENTS)
        if len(arguments) > count:
            stack -= 8 * (len(arguments) - count & 1)
            for value in reversed(arguments[count:]):
                stack -= 8
                self.memory.poke(stack, (value & _MASK).to_bytes(8, "little"))
            arguments = arguments[:count]
        stack -= 8
        if self.word(stack) != RETURN:
            self.memory.poke(stack, RETURN.to_bytes(8, "little"))
        machine.enter(arguments, stack)
        return machine.run(function, RETURN, limit)

    def instruction(self, address: int, size: int) -> bytes:
        """Up to ``size`` bytes of code; fewer where the next page cannot be had."""
        room = PAGE - address % PAGE
        try:
            return self.memory.read(address, size)
        except MissingMemory:
            return self.memory.read(address, min(size, room))

    def note(self, text: str) -> None:
        """Say once what was missing and what that cost."""
        if text not in self.notes:
            self.notes.append(text)

    def where(self, address: int) -> str:
        """``function+0x1b`` of an address."""
        symbol = self.kernel.symbols.at(address)
        return f"{symbol.name}+{address - symbol.address:#x}" if symbol else f"{address:#x}"
