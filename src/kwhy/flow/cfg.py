"""Blocks and edges of a kernel function, from its live code.

A function is cut into *segments*: straight-line code that ends where control may turn (a branch, a
conditional move, a jump table, an instruction that may fault) or where something observable
happens (a call). Live code settles static keys, static calls and alternatives by itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from kwhy.arch import Arch
from kwhy.errors import FATAL
from kwhy.flow.ir import Expr, Insn

MAX_FUNCTION = 1 << 17
MAX_TABLE = 1024
THUNK = 32
"""Bytes of a retpoline (arch/x86/include/asm/nospec-branch.h)."""

# Functions that never come back (tools/objtool/noreturns.h); a path through one returns nothing.
NORETURN = frozenset({
    "__stack_chk_fail", "panic", "nmi_panic", "do_exit", "do_group_exit", "make_task_dead",
    "rewind_stack_and_make_dead", "rewind_stack_do_exit", "__module_put_and_kthread_exit",
    "kthread_exit", "kthread_complete_and_exit", "__fortify_panic", "fortify_panic",
    "__ubsan_handle_builtin_unreachable", "ex_handler_msr_mce", "hlt_play_dead",
    "machine_real_restart", "mce_panic", "stop_this_cpu", "usercopy_abort", "cpu_startup_entry",
    "do_task_dead", "__reiserfs_panic", "lbug_with_loc", "sev_es_terminate", "snp_abort",
    "xen_start_kernel", "start_kernel", "acpi_processor_ffh_play_dead", "vpanic",
    "kunit_try_catch_throw",
})  # fmt: skip


class Extable(Protocol):
    """One entry of the kernel's exception table."""

    @property
    def insn(self) -> int: ...
    @property
    def fixup(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def register(self) -> str | None: ...
    @property
    def imm(self) -> int | None: ...


class Symbol(Protocol):
    """A named range of kernel text or data."""

    @property
    def name(self) -> str: ...
    @property
    def address(self) -> int: ...
    @property
    def size(self) -> int: ...


class Symbols(Protocol):
    """Where names and addresses meet."""

    def at(self, address: int) -> Symbol | None: ...


class Kernel(Protocol):
    """What the flow analysis asks of a kernel."""

    @property
    def symbols(self) -> Symbols: ...
    @property
    def trace_sites(self) -> frozenset[int] | None: ...
    def code(self, address: int, size: int) -> bytes: ...
    def prefetch(self, ranges: list[tuple[int, int]]) -> None: ...
    def exception_table(self, start: int, end: int) -> Sequence[Extable]: ...


@dataclass(slots=True)
class Segment:
    """Straight-line code and the one turn at its end.

    ``kind``: fall, jump, branch, select, call, tail, return, switch, fault, trap, stop. ``next`` is
    where control goes on (not taken, not faulted); ``target`` the other way, or a tail call's
    function; ``table`` a switch's targets with their index.
    """

    start: int
    insns: list[Insn]
    kind: str
    next: int | None = None
    target: int | None = None
    through: Expr | None = None
    table: tuple[tuple[int, int], ...] = ()
    index: Expr | None = None
    fix: tuple[str, int] | None = None

    @property
    def last(self) -> Insn:
        """The instruction that ends the segment."""
        return self.insns[-1]

    def successors(self) -> list[int]:
        """Where control can go within the function."""
        out = [self.next] if self.next is not None else []
        if self.kind in ("branch", "fault", "jump") and self.target is not None:
            out.append(self.target)
        out.extend(to for _, to in self.table)
        return out

    def leaves(self, segments: Mapping[int, "Segment"]) -> list[int | None]:
        """Where control can go on in other functions, as if they had been called instead.

        None is a place that is not known. What follows a call that never comes back is none.
        """
        if self.kind == "tail":
            return [self.target]
        if self.kind in ("call", "trap"):
            return []
        return [to for to in self.successors() if to not in segments]


@dataclass(slots=True)
class Function:
    """A function's segments by start address; ``callees`` are its direct call targets."""

    name: str
    entry: int
    segments: dict[int, Segment]
    callees: frozenset[int]
    live: dict[int, frozenset[str]] = field(default_factory=dict)
    incomplete: list[str] = field(default_factory=list)


def base_name(name: str) -> str:
    """A function's name without the suffix of its unlikely part (``NAME.cold``)."""
    return name.split(".cold", 1)[0]


class Code:
    """The functions of one kernel, decoded on demand and kept."""

    def __init__(self, kernel: Kernel, arch: Arch) -> None:
        self.kernel = kernel
        self.arch = arch
        self._functions: dict[int, Function] = {}
        self._names: dict[int, str] = {}
        self._traceable: dict[int, bool] = {}
        self._written: dict[int, frozenset[str]] = {}
        self._resolved: dict[int, int] = {}

    def name(self, address: int) -> str:
        """The symbol at an address, or the address in hex."""
        name = self._names.get(address)
        if name is None:
            symbol = self.kernel.symbols.at(address)
            name = self._names[address] = symbol.name if symbol else f"{address:#x}"
        return name

    def function(self, address: int) -> Function:
        """The function that starts at ``address``; raises the reader's error if unreadable."""
        if address not in self._functions:
            self._functions[address] = _build(self, address)
        return self._functions[address]

    def traceable(self, address: int) -> bool:
        """Whether a call of this function leaves an event in the function tracer's buffer."""
        if address not in self._traceable:
            try:
                code = self.kernel.code(address, 16)
            except FATAL:
                raise
            except Exception:
                self._traceable[address] = False
                return False
            at = self.arch.trace_site(code)
            result = at is not None
            if at is not None and code[at] == 0xE8:
                goal = (
                    address + at + 5 + int.from_bytes(code[at + 1 : at + 5], "little", signed=True)
                )
                symbol = self.kernel.symbols.at(goal & ((1 << 64) - 1))
                result = symbol is None or self.arch.is_tracer(symbol.name)
            sites = self.kernel.trace_sites if result else None
            if at is not None and sites is not None:
                result = address + at in sites
            self._traceable[address] = result
        return self._traceable[address]

    def resolve(self, target: int) -> int:
        """A call target with static-call trampolines followed."""
        if target not in self._resolved:
            goal = target
            if self.name(target).startswith("__SCT__"):
                insns = self._decode(target, 16)
                if insns and insns[0].kind == "jump" and insns[0].target is not None:
                    goal = insns[0].target
            self._resolved[target] = goal
        return self._resolved[target]

    def written(self, address: int) -> frozenset[str]:
        """Registers that an untraced callee may change (all of the convention's if unsure)."""
        if address not in self._written:
            self._written[address] = self.arch.clobbered
            try:
                function = self.function(address)
            except FATAL:
                raise
            except Exception:  # whatever keeps its code from being read
                return self.arch.clobbered
            names: set[str] = set()
            sure = not function.incomplete
            for segment in function.segments.values():
                if segment.kind in ("call", "tail", "switch", "stop"):
                    sure = False
                for insn in segment.insns:
                    names |= insn.defines
            if sure:
                self._written[address] = frozenset(names) | {self.arch.result}
        return self._written[address]

    def thunk(self, target: int) -> str | None:
        """The register through which the retpoline at ``target`` jumps; None if it is none.

        Empty if the register is not known.
        """
        register = self.arch.indirect_thunk(self.name(target))
        return self._behind(target) if register == "" else register

    def _behind(self, thunk: int) -> str:
        """The register of a retpoline that has no symbol of its own."""
        try:
            steps = self._decode(thunk, THUNK)
            inner = next((step.target for step in steps if step.kind == "call"), None)
            if inner is not None:
                steps = self._decode(inner, THUNK // 2)
        except FATAL:
            raise
        except Exception:  # whatever keeps the code from being read
            return ""
        for step in steps:
            if step.kind == "jump" and step.through is not None and step.through[0] == "reg":
                return str(step.through[1])
            match step.effects:
                case [("store", ("reg", self.arch.stack, 8), 8, ("reg", str(name), 8))]:
                    return name
        return ""

    def direct_target(self, site: int) -> int | None:
        """Start of the function that the call instruction before return address ``site`` names."""
        try:
            before = self.kernel.code(site - 5, 5)
        except FATAL:
            raise
        except Exception:
            return None
        for insn in self.arch.decode(before, site - 5):
            if insn.kind == "call" and insn.end == site and insn.target is not None:
                if self.thunk(insn.target) is not None:
                    return None
                return self.resolve(insn.target)
        return None

    def callees(self, address: int) -> frozenset[int] | None:
        """Functions that the one at ``address`` calls or jumps to directly; None if unreadable."""
        try:
            return self.function(address).callees
        except FATAL:
            raise
        except Exception:
            return None

    def repeats(self, address: int, site: int) -> bool | None:
        """Whether the call that returns to ``site`` can run twice in one run of its function."""
        try:
            segments = self.function(address).segments
        except FATAL:
            raise
        except Exception:
            return None
        seen, todo = set[int](), [site]
        while todo:
            segment = segments.get(todo.pop())
            if segment is None or segment.start in seen:
                continue
            seen.add(segment.start)
            if segment.kind == "call" and segment.last.end == site:
                return True
            todo += segment.successors()
        return False

    def _decode(self, address: int, size: int) -> list[Insn]:
        return self.arch.decode(self.kernel.code(address, size), address)


def uses_of(expr: Expr) -> set[str]:
    """The registers that an expression reads."""
    out: set[str] = set()
    todo: list[object] = [expr]
    while todo:
        item = todo.pop()
        if isinstance(item, tuple) and item:
            if item[0] == "reg":
                out.add(item[1])
            else:
                todo.extend(item[1:])
    return out


def annotate(insn: Insn, arch: Arch) -> None:
    """Fill in which registers an instruction reads before writing, and which it writes."""
    uses: set[str] = set()
    defines: set[str] = set()
    for effect in insn.effects + insn.otherwise:
        tag = effect[0]
        if tag == "set":
            uses |= uses_of(effect[3]) - defines
            if effect[2] < 4:
                uses |= {effect[1]} - defines
        elif tag == "store":
            uses |= (uses_of(effect[1]) | uses_of(effect[3])) - defines
        elif tag == "flags":
            uses |= (uses_of(effect[3]) | uses_of(effect[4]) | set()) - defines
            defines.add("flags")
        elif tag == "swap":
            uses |= (uses_of(effect[1]) | {effect[3]}) - defines
        elif tag in ("copy", "fill"):
            uses |= set().union(*map(uses_of, effect[1:4])) - defines
        if insn.kind != "select":
            if tag == "set":
                defines.add(effect[1])
            elif tag == "forget":
                defines |= set(effect[1])
            elif tag == "swap":
                defines.add(effect[3])
    if insn.kind == "select":
        uses.add("flags")
        for effect in insn.effects:
            if effect[0] == "set":
                if not insn.otherwise:
                    uses.add(effect[1])
                else:
                    defines.add(effect[1])
    if insn.kind == "branch":
        uses.add("flags")
    if insn.through is not None:
        uses |= uses_of(insn.through)
    insn.uses, insn.defines = frozenset(uses), frozenset(defines)


def _build(code: Code, entry: int) -> Function:
    kernel, arch = code.kernel, code.arch
    symbol = kernel.symbols.at(entry)
    name = symbol.name if symbol else f"{entry:#x}"
    size = symbol.size if symbol and symbol.address == entry else 4096
    ranges = [(entry, entry + min(max(size, 1), MAX_FUNCTION))]
    texts = {entry: kernel.code(entry, ranges[0][1] - entry)}
    faults = {e.insn: e for e in kernel.exception_table(*ranges[0])}
    incomplete: list[str] = []
    insns: dict[int, Insn] = {}
    leaders = {entry}
    todo = [entry]
    prologue = texts[entry][:16]
    site = arch.trace_site(prologue)
    traced_call = entry + site if site is not None and code.traceable(entry) else None

    def inside(address: int) -> bool:
        if any(lo <= address < hi for lo, hi in ranges):
            return True
        other = kernel.symbols.at(address)
        if other and ".cold" in other.name and base_name(other.name) == base_name(name):
            end = other.address + min(max(other.size, 1), MAX_FUNCTION)
            ranges.append((other.address, end))
            texts[other.address] = kernel.code(other.address, end - other.address)
            faults.update({e.insn: e for e in kernel.exception_table(other.address, end)})
            return True
        return False

    tables: dict[int, tuple[tuple[int, int], ...]] = {}
    while todo:
        at = todo.pop()
        if at in insns or not inside(at):
            continue
        lo = next(r[0] for r in ranges if r[0] <= at < r[1])
        if traced_call == at:
            batch = [Insn(at, 5, "nop")]
            todo.append(at + 5)
        else:
            batch = arch.decode(texts[lo][at - lo : at - lo + 4096], at)
        for insn in batch:
            if insn.address in insns:
                break
            if insn.address == traced_call and at != traced_call:
                todo.append(insn.address)
                break
            annotate(insn, arch)
            insns[insn.address] = insn
            if insn.kind in ("jump", "call") and insn.target is not None:
                thunk = code.thunk(insn.target)
                if thunk is not None:
                    insn.target = None
                    insn.through = ("reg", thunk, 8) if thunk else ("unknown",)
                    insn.uses |= uses_of(insn.through)
            if insn.kind == "jump" and insn.target is not None:
                if arch.is_return_thunk(code.name(insn.target)):
                    insn.kind, insn.target = "return", None
                elif inside(insn.target):
                    leaders.add(insn.target)
                    todo.append(insn.target)
            elif insn.kind == "jump":
                table = _jump_table(code, insn, inside)
                if table:
                    tables[insn.address] = table
                    leaders.update(to for _, to in table)
                    todo.extend(to for _, to in table)
            elif insn.kind == "branch":
                assert insn.target is not None
                leaders.update((insn.target, insn.end))
                todo.append(insn.target)
            entry_of = faults.get(insn.address)
            if entry_of is not None:
                leaders.add(insn.end)
                leaders.add(entry_of.fixup)
                if not inside(entry_of.fixup):
                    other = kernel.symbols.at(entry_of.fixup)
                    end = min(entry_of.fixup + 64, other.address + other.size if other else 1 << 64)
                    end = max(end, entry_of.fixup + 16)
                    ranges.append((entry_of.fixup, end))
                    texts[entry_of.fixup] = kernel.code(entry_of.fixup, end - entry_of.fixup)
                todo.append(entry_of.fixup)
        else:
            if not batch:
                incomplete.append(f"cannot decode {at:#x}")
            elif batch[-1].kind not in ("jump", "return", "stop") and inside(batch[-1].end):
                todo.append(batch[-1].end)
    segments = _cut(insns, leaders, tables, faults, inside)
    callees = frozenset(
        code.resolve(s.target)
        for s in segments.values()
        if s.kind in ("call", "tail") and s.target is not None
    )
    kernel.prefetch([(address, 16) for address in callees])
    function = Function(name, entry, segments, callees, incomplete=incomplete)
    function.live = _liveness(function, arch)
    return function


def _jump_table(code: Code, insn: Insn, inside: object) -> tuple[tuple[int, int], ...]:
    """Targets of ``jmp *TABLE(,%reg,8)``: entries are read for as long as they stay inside."""
    expr = insn.through
    if expr is None or expr[0] != "load":
        return ()
    address = expr[1]
    if address[0] != "bin" or address[1] != "add" or address[4][0] != "const":
        return ()
    scaled = address[3]
    if scaled[0] != "bin" or scaled[1] != "mul" or scaled[4] != ("const", 8):
        return ()
    assert callable(inside)
    out: list[tuple[int, int]] = []
    base = address[4][1]
    try:
        raw = code.kernel.code(base, 8 * MAX_TABLE)
    except FATAL:
        raise
    except Exception:
        try:
            raw = code.kernel.code(base, 8 * 64)
        except FATAL:
            raise
        except Exception:
            return ()
    for index in range(len(raw) // 8):
        to = int.from_bytes(raw[8 * index : 8 * index + 8], "little")
        if not inside(to):
            break
        out.append((index, to))
    return tuple(out)


def _cut(
    insns: dict[int, Insn],
    leaders: set[int],
    tables: dict[int, tuple[tuple[int, int], ...]],
    faults: dict[int, Extable],
    inside: object,
) -> dict[int, Segment]:
    assert callable(inside)
    segments: dict[int, Segment] = {}
    run: list[Insn] = []

    def end(kind: str, **more: object) -> None:
        nonlocal run
        segment = Segment(run[0].address, run, kind)
        for key, value in more.items():
            setattr(segment, key, value)
        segments[segment.start] = segment
        run = []

    for address in sorted(insns):
        insn = insns[address]
        if run and (address in leaders or run[-1].end != address):
            end("fall", next=run[-1].end)
        run.append(insn)
        entry = faults.get(address)
        if entry is not None and insn.kind == "op":
            fix = (
                (entry.register, entry.imm)
                if entry.register is not None and entry.imm is not None
                else None
            )
            end("fault", next=insn.end, target=entry.fixup, fix=fix)
        elif insn.kind == "branch":
            end("branch", next=insn.end, target=insn.target)
        elif insn.kind == "select":
            end("select", next=insn.end)
        elif insn.kind == "call":
            end("call", next=insn.end, target=insn.target, through=insn.through)
        elif insn.kind == "return":
            end("return")
        elif insn.kind == "trap":
            end("trap", next=insn.end)
        elif insn.kind == "stop":
            end("stop")
        elif insn.kind == "jump":
            if address in tables:
                assert insn.through is not None
                end("switch", table=tables[address], index=insn.through[1][3][3])
            elif insn.target is not None and inside(insn.target):
                end("jump", target=insn.target)
            else:
                end("tail", target=insn.target, through=insn.through)
    if run:
        end("fall", next=run[-1].end)
    return segments


def _liveness(function: Function, arch: Arch) -> dict[int, frozenset[str]]:
    """Registers whose value on entry to each segment can still matter."""
    argument = frozenset(arch.arguments)
    live: dict[int, frozenset[str]] = dict.fromkeys(function.segments, frozenset())
    order = sorted(function.segments, reverse=True)
    changed = True
    while changed:
        changed = False
        for start in order:
            segment = function.segments[start]
            out: set[str] = {arch.stack}
            if segment.kind in ("return", "tail"):
                out.add(arch.result)
            for to in segment.successors():
                out |= live.get(to, frozenset())
            for insn in reversed(segment.insns):
                if insn.kind == "call":
                    out -= arch.clobbered
                    out |= argument
                elif insn.kind == "jump" and segment.kind == "tail":
                    out |= argument
                out -= insn.defines
                out |= insn.uses
            now = frozenset(out)
            if now != live[start]:
                live[start] = now
                changed = True
    return live
