"""An execution read again with terms beside its values: which call, which branch, which operands.

The machine tracked what ran; here each instruction's effects are applied to terms
(:mod:`kwhy.flow.terms`), whose concrete values are known throughout: from registers at block
starts, and from each memory access. So a branch can be told as ``head->read != commit->page`` with
both values, and every value knows the step that made it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from kwhy.arch import Arch
from kwhy.emulate.machine import GENERAL
from kwhy.emulate.track import Access, Track
from kwhy.flow.cfg import Code, annotate, base_name
from kwhy.flow.ir import Effect, Expr, Insn
from kwhy.flow.state import Condition, Flags, decide
from kwhy.flow.terms import Term, add, binary, invert, low, mask, negate, sext, signed, sym

UNKNOWN_FLAGS: Flags = ("unknown", 8, 0, 0)
_MASK = (1 << 64) - 1


@dataclass(slots=True)
class Called:
    """A call that a frame made: the callee's entry, its frame."""

    function: int
    frame: int


@dataclass(slots=True)
class Frame:
    """One activation of a function. ``entry_stack`` points to its return address.

    ``inputs`` and ``made_by`` are the registers at its entry and the steps that had made them.
    ``by``: the step of the call (or jump, for a tail call) that began it; ``result`` is the
    returned value once it came back, ``result_term`` and ``result_step`` how it was made.
    """

    number: int
    entry: int
    name: str
    parent: int | None
    by: int
    entry_stack: int
    tail: bool
    inputs: dict[str, int]
    made_by: dict[str, int]
    registers: dict[str, Term] = field(default_factory=dict)
    calls: list[Called] = field(default_factory=list)
    result: int | None = None
    result_term: Term | None = None
    result_step: int | None = None


@dataclass(frozen=True, slots=True)
class Branch:
    """A conditional jump (or move) as it went, at a step in a frame."""

    step: int
    frame: int
    address: int
    kind: str
    taken: bool
    condition: Condition | None
    target: int
    after: int | None


@dataclass(slots=True)
class _Words:
    """What :class:`kwhy.diagnose.words.Words` asks of a function."""

    name: str
    segments: dict[int, Any] = field(default_factory=dict)


class History:
    """The frames and branches of one tracked run; for each step what its values depend on.

    ``values`` maps a term to its concrete value. ``data[i]`` are the steps that made the values
    which step ``i`` used, ``places[i]`` those that made its addresses, ``asked[i]`` the comparison
    that a branch or conditional move asked.
    """

    def __init__(
        self,
        code: Code,
        track: Track,
        read: Callable[[int, int], bytes],
        result: int | None = None,
    ) -> None:
        """``read`` gives up to so many bytes of code; ``result`` is what the run returned."""
        self.code, self.arch, self.track = code, code.arch, track
        self._read = read
        self._insns: dict[int, Insn] = {}
        self.steps = track.steps
        self.all_frames: list[Frame] = []
        self.frame_at: list[int] = []
        self.branches: dict[int, Branch] = {}
        self.data: list[tuple[int, ...]] = []
        self.asked: list[tuple[int, ...]] = []
        self.places: list[tuple[int, ...]] = []
        self.values: dict[Any, int] = {}
        self._stack: list[Frame] = []
        self._defined: dict[str, int] = {}
        self._written: dict[int, int] = {}
        self._shadow: dict[int, tuple[int, Term]] = {}
        self._flags: Flags = UNKNOWN_FLAGS
        self._run(result)
        self.frames: dict[int, tuple[Any, _Words, list[Called]]] = {
            f.number: (None, _Words(f.name), f.calls) for f in self.all_frames
        }
        """Frames as the namer of terms wants them."""

    def value(self, term: Term) -> int | None:
        """The concrete value of a term, None where it was lost."""
        if isinstance(term, int):
            return term
        found = self.values.get(term)
        if found is not None:
            return found
        tag = term[0]
        if tag == "init":
            return self.all_frames[term[1]].inputs.get(term[2])
        if tag in ("low", "sext", "neg", "not", "add"):
            inner = self.value(term[1] if tag == "add" else term[2])
            if inner is None:
                return None
            if tag == "add":
                return (inner + int(term[2])) & _MASK
            if tag == "sext":
                return int(signed(inner, term[1])) & _MASK
            changed = {"low": inner, "neg": -inner, "not": ~inner}[tag] & mask(term[1])
            return int(changed)
        if tag == "join":
            new, old = self.value(term[2]), self.value(term[3])
            keep = _MASK ^ mask(term[1])
            return None if new is None or old is None else (old & keep) | new
        if tag == "bin":
            a, b = self.value(term[3]), self.value(term[4])
            if a is None or b is None:
                return None
            result = binary(term[1], term[2], a, b)
            return result if isinstance(result, int) else None
        return None

    def insn(self, step: int) -> Insn | None:
        """The instruction of a step."""
        return self._decoded(self.steps[step])

    # -- the walk ----------------------------------------------------------------------------------

    def _run(self, result: int | None) -> None:
        accesses = iter(self.track.accesses)
        pending: Access | None = next(accesses, None)
        before: Insn | None = None
        for step, address in enumerate(self.steps):
            registers = self.track.registers.get(step)
            if registers is not None:
                self._begin_block(step, address, dict(zip(GENERAL, registers, strict=True)), before)
            mine: list[Access] = []
            while pending is not None and pending.step <= step:
                mine.append(pending)
                pending = next(accesses, None)
            insn = self._decoded(address)
            self.frame_at.append(self._stack[-1].number)
            if insn is None:
                self.asked.append(())
                self.data.append(())
                self.places.append(())
            else:
                self._step(step, insn, mine)
            before = insn
        for frame in self._stack:
            self._close(frame, result)

    def _begin_block(
        self, step: int, address: int, registers: dict[str, int], before: Insn | None
    ) -> None:
        stack = registers[self.arch.stack]
        popped: Frame | None = None
        while len(self._stack) > 1 and stack > self._stack[-1].entry_stack:
            popped = self._stack.pop()
            self._close(popped, registers[self.arch.result])
            outer = popped
            while outer.tail and len(self._stack) > 1:
                outer = self._stack.pop()
                self._close(outer, registers[self.arch.result])
            self._return_to(self._stack[-1], popped, registers)
        if not self._stack:
            self._enter(step, address, stack, registers, None, False)
        elif before is not None and before.kind == "call" and address != before.end:
            self._enter(step, address, stack, registers, self._stack[-1], False)
        elif before is not None and before.kind in ("jump", "return"):
            self._jumped(step, address, stack, registers, before.kind)
        frame = self._stack[-1]
        for name, value in registers.items():
            term = frame.registers.get(name)
            if isinstance(term, tuple) and term[0] == "lost" and term not in self.values:
                self.values[term] = value

    def _jumped(
        self, step: int, address: int, stack: int, registers: dict[str, int], kind: str
    ) -> None:
        """A tail call begins a frame; what a thunk jumps (or "returns") to is the call meant."""
        if not self._other_function(address):
            return
        if self.arch.indirect_thunk(self._stack[-1].name) is not None:
            self._replace(address, registers)
        elif kind == "jump":
            self._enter(step, address, stack, registers, self._stack[-1], True)

    def _other_function(self, address: int) -> bool:
        symbol = self.code.kernel.symbols.at(address)
        if symbol is None or symbol.address != address or self.arch.is_return_thunk(symbol.name):
            return False
        return base_name(symbol.name) != base_name(self._stack[-1].name)

    def _replace(self, address: int, registers: dict[str, int]) -> None:
        """The innermost frame was a thunk's, which has now jumped to what was meant."""
        frame = self._stack[-1]
        frame.entry, frame.name = address, self.code.name(address)
        frame.inputs, frame.registers, frame.calls = dict(registers), {}, []
        if len(self._stack) > 1:
            self._stack[-2].calls[-1].function = address

    def _enter(
        self,
        step: int,
        address: int,
        stack: int,
        registers: dict[str, int],
        parent: Frame | None,
        tail: bool,
    ) -> None:
        number = len(self.all_frames)
        above = parent.number if parent else None
        name = self.code.name(address)
        frame = Frame(
            number, address, name, above, step - 1, stack, tail, dict(registers),
            dict(self._defined),
        )  # fmt: skip
        if parent is not None:
            parent.calls.append(Called(address, number))
        self.all_frames.append(frame)
        self._stack.append(frame)

    def _close(self, frame: Frame, result: int | None) -> None:
        frame.result = result
        frame.result_term = frame.registers.get(self.arch.result)
        frame.result_step = self._defined.get(self.arch.result)

    def _return_to(self, frame: Frame, callee: Frame, registers: dict[str, int]) -> None:
        """The caller's registers after a call: what the callee changed is its doing.

        What it saved and restored was made where it was made before.
        """
        outer = self.all_frames[frame.calls[-1].frame] if frame.calls else callee
        for name in self.arch.registers:
            if name not in self.arch.clobbered:
                self._defined.pop(name, None)
                if name in outer.made_by:
                    self._defined[name] = outer.made_by[name]
        for name in self.arch.clobbered:
            term = callee.registers.get(name)
            if term is None or term == sym("init", callee.number, name):
                continue
            if name == self.arch.result:
                term = sym("ret", frame.number, len(frame.calls) - 1)
                self.values[term] = registers[name]
            frame.registers[name] = term
            if isinstance(term, tuple) and self.value(term) is None:
                self.values[term] = registers[name]

    def _decoded(self, address: int) -> Insn | None:
        if address not in self._insns:
            found = self.arch.decode(self._read(address, 15), address)
            if not found:
                return None
            annotate(found[0], self.arch)
            self._insns[address] = found[0]
        return self._insns[address]

    # -- one instruction ---------------------------------------------------------------------------

    def _step(self, step: int, insn: Insn, accesses: list[Access]) -> None:
        reads = [a for a in accesses if not a.write]
        writes = iter([a for a in accesses if a.write])
        self._depend(step, insn, reads)
        effects = insn.effects
        if insn.kind in ("branch", "select"):
            went = self._branch(step, insn)
            if insn.kind == "select" and not went:
                effects = insn.otherwise
        loads: dict[Expr, Term] = {}
        for effect in effects:
            self._apply(step, effect, reads, writes, loads)
        for write in writes:  # of an instruction without a model, such as a call or string move
            self._store(step, write, sym("lost", self._stack[-1].number, (step, write.address)))
        for access in accesses:
            if access.write:
                for byte in range(access.address, access.address + access.size):
                    self._written[byte] = step
        for name in insn.defines:
            self._defined[name] = step
        if insn.kind == "select":
            for effect in insn.effects:
                if effect[0] == "set":
                    self._defined[effect[1]] = step

    def _depend(self, step: int, insn: Insn, reads: list[Access]) -> None:
        """Which earlier steps this one's values, and its addresses, come from."""
        values, places = _used(insn, self.arch)
        if any(effect[0] == "forget" for effect in insn.effects):
            values |= self.arch.reads(self._read(insn.address, insn.size), insn.address)
        flags = self._defined.get("flags")
        asks = insn.kind in ("branch", "select") and flags is not None
        self.asked.append((flags,) if asks and flags is not None else ())
        data = {self._defined[name] for name in values if name in self._defined}
        for read in reads:
            if insn.kind in ("return", "call"):
                continue
            for byte in range(read.address, read.address + read.size):
                if byte in self._written:
                    data.add(self._written[byte])
        self.data.append(tuple(sorted(data)))
        self.places.append(
            tuple(sorted({self._defined[name] for name in places if name in self._defined}))
        )

    def _branch(self, step: int, insn: Insn) -> bool:
        condition = decide(self._flags, insn.condition)
        after = self.steps[step + 1] if step + 1 < len(self.steps) else None
        if insn.kind == "branch":
            taken = after == insn.target
        else:
            taken = bool(self._holds(condition))
        self.branches[step] = Branch(
            step, self._stack[-1].number, insn.address, insn.kind, taken, condition,
            insn.target or insn.end, after,
        )  # fmt: skip
        return taken

    def _holds(self, condition: Condition | None) -> bool | None:
        """Whether a comparison holds for the concrete values; None when one of them is lost."""
        if condition is None:
            return None
        op, a, b, size = condition
        x, y = self.value(a), self.value(b)
        if x is None or y is None:
            return None
        x, y = x & mask(size), y & mask(size)
        if op[0] == "s":
            x, y = signed(x, size), signed(y, size)
        return {"eq": x == y, "ne": x != y, "lt": x < y, "le": x <= y, "gt": x > y, "ge": x >= y}[
            op if op in ("eq", "ne") else op[1:]
        ]

    def _apply(
        self,
        step: int,
        effect: Effect,
        reads: list[Access],
        writes: Iterator[Access],
        loads: dict[Expr, Term],
    ) -> None:
        frame = self._stack[-1]
        tag = effect[0]

        def term(expr: Expr) -> Term:
            return self._term(step, expr, reads, loads)

        if tag == "set":
            _, name, size, expr = effect
            value = term(expr)
            if size >= 4:
                frame.registers[name] = low(size, value)
            else:
                old = self._register(frame, name)
                known = isinstance(old, int) and old >> (8 * size) == 0
                frame.registers[name] = (
                    low(size, value) if known else sym("join", size, low(size, value), old)
                )
        elif tag == "store":
            write = next(writes, None)
            if write is not None:
                self._store(step, write, low(effect[2], term(effect[3])))
        elif tag == "flags":
            _, kind, size, a, b = effect
            self._flags = UNKNOWN_FLAGS if kind == "unknown" else (kind, size, term(a), term(b))
        elif tag == "bittest":
            _, size, where, index = effect
            bit = self.value(term(index))
            if bit is not None and len(reads) == 1:
                word = term(("load", where, size))
                self._flags = ("bit", size, word, bit & (8 * size - 1))
        elif tag == "swap":
            _, where, size, name = effect
            old, new = term(("load", where, size)), low(size, self._register(frame, name))
            write = next(writes, None)
            if write is not None:
                self._store(step, write, new)
            frame.registers[name] = old
        elif tag == "forget":
            for name in effect[1]:
                frame.registers[name] = sym("lost", frame.number, (step, name))

    def _store(self, step: int, write: Access, value: Term) -> None:
        for start in range(write.address - 15, write.address + write.size):
            cell = self._shadow.get(start)
            if cell is not None and start + cell[0] > write.address:
                del self._shadow[start]
        if not isinstance(value, int) and self.value(value) is None:
            self.values[value] = write.value
        self._shadow[write.address] = (write.size, value)

    def _register(self, frame: Frame, name: str) -> Term:
        value = frame.registers.get(name)
        if value is None:
            value = frame.registers[name] = sym("init", frame.number, name)
        return value

    def _term(self, step: int, expr: Expr, reads: list[Access], loads: dict[Expr, Term]) -> Term:
        frame = self._stack[-1]
        tag = expr[0]
        if tag == "reg":
            return low(expr[2], self._register(frame, expr[1]))
        if tag == "const":
            return int(expr[1]) & _MASK
        if tag == "load":
            if expr not in loads:
                loads[expr] = self._load(step, expr, reads, loads)
            return loads[expr]
        if tag == "bin":
            a = self._term(step, expr[3], reads, loads)
            b = self._term(step, expr[4], reads, loads)
            return (
                add(a, b)
                if expr[1] == "add" and expr[2] == 8 and isinstance(b, int)
                else (binary(expr[1], expr[2], a, b))
            )
        if tag == "un":
            value = self._term(step, expr[3], reads, loads)
            return negate(expr[2], value) if expr[1] == "neg" else invert(expr[2], value)
        if tag == "sext":
            return sext(expr[1], self._term(step, expr[2], reads, loads))
        if tag == "percpu":
            return sym("percpu", self._term(step, expr[1], reads, loads))
        return sym("lost", frame.number, (step, len(loads)))

    def _load(self, step: int, expr: Expr, reads: list[Access], loads: dict[Expr, Term]) -> Term:
        """What a load gives: what this run stored there, else memory as it was before."""
        _, where, size = expr
        address = self._term(step, where, reads, loads)
        number = sum(1 for known in loads if known[0] == "load")
        access = reads[number] if number < len(reads) else None
        if access is not None and access.size == size:
            cell = self._shadow.get(access.address)
            if cell is not None and cell[0] >= size:
                return low(size, cell[1])
        value: Term = sym("mem", address, size, step)
        if access is not None and access.size == size:
            self.values[value] = access.value
        return value


def _used(insn: Insn, arch: Arch) -> tuple[set[str], set[str]]:
    """Registers that an instruction's values come from, and those that only form addresses."""
    values: set[str] = set()
    places: set[str] = set()
    for effect in insn.effects + insn.otherwise:
        tag = effect[0]
        if tag == "set":
            if effect[1] != arch.stack:
                _split(effect[3], values, places)
            if effect[2] < 4 or insn.kind == "select":
                values.add(effect[1])
        elif tag == "store":
            _split(effect[3], values, places)
            _split(effect[1], places, places)
        elif tag == "flags":
            _split(effect[3], values, places)
            _split(effect[4], values, places)
        elif tag == "swap":
            values.add(effect[3])
            _split(effect[1], places, places)
        elif tag == "bittest":
            _split(effect[3], values, places)
            _split(effect[2], places, places)
    if insn.through is not None:
        _split(insn.through, values, places)
    return values, places


def _split(expr: Expr, values: set[str], places: set[str]) -> None:
    if expr[0] == "reg":
        values.add(expr[1])
    elif expr[0] in ("load", "percpu"):
        _split(expr[1], places, places)
    else:
        for part in expr[1:]:
            if isinstance(part, tuple):
                _split(part, values, places)
