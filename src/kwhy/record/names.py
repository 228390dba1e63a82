"""Functions by address, remembered, and what their names say about the context they run in."""

import re
from collections.abc import Callable

from kwhy.record.model import SymbolLike, SymbolsLike

# Where the CPU enters the kernel on top of what runs: exceptions and interrupts
# (arch/x86/include/asm/idtentry.h), FRED (arch/x86/entry/entry_fred.c) and, since those entry
# functions are noinstr and so never traced, the first instrumentable functions below them.
_ENTRY = re.compile(
    r"^(?:asm_exc_|asm_sysvec_|asm_common_interrupt|asm_spurious|asm_fred_|fred_|exc_|sysvec_|"
    r"__sysvec_|instr_sysvec_|common_interrupt|__common_interrupt|spurious_interrupt|do_user_addr_fault|"
    r"do_kern_addr_fault|handle_page_fault|default_do_nmi|smp_\w+_interrupt|end_repeat_nmi|"
    r"asm_call_irq_on_stack|asm_call_sysvec_on_stack|asm_call_on_stack|handle_bug|error_entry|"
    r"do_error_trap|do_int3|run_(?:irq|sysvec|softirq)_on|irqentry_|__irqentry|irq_enter|irq_exit|"
    r"__irq_enter|__irq_exit|nmi_enter|nmi_exit|idtentry_)"
)
# Of these, the ones that end an interrupt: they belong to the one that runs, if one does.
_LEAVING = re.compile(r"^(?:irqentry_|irq_exit|__irq_exit|nmi_exit)")
# Softirqs that run at the end of local_bh_enable() in the task's own context are as foreign to
# the call as interrupts are.
_SOFTIRQ = re.compile(r"^(?:__do_softirq|handle_softirqs|do_softirq_own_stack)")
# Being preempted: from an interrupt's end or a preempt_enable() (kernel/sched/core.c); all notrace.
_SWITCH = re.compile(r"^(?:__schedule|preempt_schedule\w*|dynamic_preempt_schedule\w*)$")
# Return addresses that tracers put in place of the caller's.
_TRAMPOLINE = re.compile(
    r"^(?:return_to_handler|kretprobe_trampoline|__kretprobe_trampoline|arch_rethook_trampoline|"
    r"ftrace_\w*caller|ftrace_trampoline)"
)
# Targets of call instructions that stand for another function: thunks of indirect calls and
# returns, and static calls as they are in the file, before the kernel patches them.
_THUNK = re.compile(
    r"^(?:__x86_indirect_|__x86_return_thunk|__static_call_return0|__SCT__|__fentry__|srso_|retbleed_)"
)
# The tracer at work: on 5.10 the clock "mono" is a traced function, so that the ring buffer's own
# look at the time leaves two events for each that it writes.
_TRACER = re.compile(
    r"^(?:__rb_|rb_|ring_buffer_|__ring_buffer_|trace_function\b|function_trace_call|trace_clock|"
    r"trace_pid_list_|trace_buffer_|__trace_buffer|trace_event_buffer|trace_graph_|__trace_graph|ftrace_syscall_)"
)
_SYSCALL = re.compile(r"^__(x64|ia32|ia32_compat|x32_compat|arm64)_(?:compat_)?sys_(\w+)$")


class Function:
    """A function: its start, its name, and what kind of code its name gives it away as."""

    __slots__ = (
        "entry", "leaving", "name", "others", "size", "softirq", "start", "switch", "thunk",
        "tracer", "trampoline",
    )  # fmt: skip

    def __init__(
        self, start: int, name: str, others: tuple[int, ...] = (), size: int = 0
    ) -> None:
        self.start = start
        self.size = size  # bytes; 0: not known
        self.name = name
        self.others = others  # further candidates, for the cold part of one of several namesakes
        self.entry = bool(_ENTRY.match(name))
        self.leaving = bool(_LEAVING.match(name))
        self.softirq = bool(_SOFTIRQ.match(name))
        self.switch = bool(_SWITCH.match(name))
        self.tracer = bool(_TRACER.match(name))
        self.thunk = bool(_THUNK.match(name))
        self.trampoline = bool(_TRAMPOLINE.match(name))

    @property
    def syscall(self) -> tuple[str, bool] | None:
        """(system call's name, 32-bit program) when this is a system call's entry function."""
        match = _SYSCALL.match(self.name)
        return (match[2], match[1] not in ("x64", "arm64")) if match else None


class Functions:
    """`Function` by address, each looked up once."""

    def __init__(self, symbols: SymbolsLike) -> None:
        self._symbols = symbols
        self._by_address: dict[int, Function] = {}
        self._by_start: dict[int, Function] = {}

    def at(self, address: int) -> Function:
        """The function around `address`; without a symbol, one that starts at `address` itself.

        The cold part of a function (``NAME.cold``) counts as the function.
        """
        known = self._by_address.get(address)
        if known is None:
            known = self._by_address[address] = self._find(address)
        return known

    def caller(self, site: int) -> Function:
        """The function that contains the call instruction before return address `site`."""
        return self.at(site - 1)

    def _find(self, address: int) -> Function:
        symbol = self._symbols.at(address)
        if symbol is None:
            return Function(address, "")
        start, name, size = symbol.address, symbol.name, getattr(symbol, "size", 0)
        others: tuple[int, ...] = ()
        if ".cold" in name:
            hot = self._hot(name.partition(".cold")[0])
            if hot:
                # Of several static namesakes the nearest below is no better guess than another.
                start, name, others = hot[0], name.partition(".cold")[0], tuple(hot[1:])
                size = 0
        function = self._by_start.get(start)
        if function is None or others:
            function = self._by_start[start] = Function(start, name, others, size)
        return function

    def _hot(self, name: str) -> list[int]:
        named: Callable[[str], list[SymbolLike]] | None = getattr(self._symbols, "named", None)
        return [s.address for s in named(name)] if named else []
