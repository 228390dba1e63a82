"""What one executed instruction did, in terms: its effects worked out on what was before it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kwhy.emulate.steps import Access
from kwhy.flow.ir import Effect, Expr
from kwhy.flow.state import Flags
from kwhy.flow.terms import Term, add, binary, invert, low, negate, sext, sym

if TYPE_CHECKING:
    from kwhy.emulate.history import History

UNKNOWN_FLAGS: Flags = ("unknown", 8, 0, 0)
_MASK = (1 << 64) - 1


@dataclass(slots=True)
class Effects:
    """What one step did: registers, flags, and by number of the access what it stored."""

    registers: dict[str, Term] = field(default_factory=dict)
    flags: Flags | None = None
    stores: dict[int, Term] = field(default_factory=dict)


def effects_of(history: "History", step: int) -> Effects:
    """The effects of the instruction of a step."""
    return _Evaluation(history, step).run()


class _Evaluation:
    def __init__(self, history: "History", step: int) -> None:
        self.history, self.step = history, step
        self.insn = history.steps_of.insn(step)
        self.frame = history.all_frames[history.frame_at[step]]
        accesses = history.steps_of.accesses(step)
        self.reads = [access for access in accesses if not access.write]
        self.writes = [access for access in accesses if access.write]
        self.loads: dict[Expr, Term] = {}
        self.done = Effects()

    def run(self) -> Effects:
        insn, effects = self.insn, self.insn.effects
        if insn.kind == "select" and not self.history.branches[self.step].taken:
            effects = insn.otherwise
            for effect in insn.effects:  # without another value it stays what it was
                if effect[0] == "set":
                    self.done.registers[effect[1]] = self._register(effect[1])
        writes = iter(self.writes)
        for effect in effects:
            self._apply(effect, writes)
        for write in writes:  # of an instruction without a model, such as a call or string move
            self._store(write, sym("lost", self.frame.number, (self.step, write.address)))
        return self.done

    def _apply(self, effect: Effect, writes: Iterator[Access]) -> None:
        registers = self.done.registers
        tag = effect[0]
        if tag == "set":
            _, name, size, expr = effect
            value = self._term(expr)
            if size >= 4:
                registers[name] = low(size, value)
            else:
                old = self._register(name)
                known = isinstance(old, int) and old >> (8 * size) == 0
                registers[name] = (
                    low(size, value) if known else sym("join", size, low(size, value), old)
                )
        elif tag == "store":
            write = next(writes, None)
            if write is not None:
                self._store(write, low(effect[2], self._term(effect[3])))
        elif tag == "flags":
            _, kind, size, a, b = effect
            unknown = kind == "unknown"
            self.done.flags = (
                UNKNOWN_FLAGS if unknown else (kind, size, self._term(a), self._term(b))
            )
        elif tag == "bittest":
            _, size, where, index = effect
            bit = self.history.value(self._term(index))
            if bit is not None and len(self.reads) == 1:
                word = self._term(("load", where, size))
                self.done.flags = ("bit", size, word, bit & (8 * size - 1))
        elif tag == "swap":
            _, where, size, name = effect
            old, new = self._term(("load", where, size)), low(size, self._register(name))
            write = next(writes, None)
            if write is not None:
                self._store(write, new)
            registers[name] = old
        elif tag == "forget":
            for name in effect[1]:
                registers[name] = sym("lost", self.frame.number, (self.step, name))

    def _store(self, write: Access, value: Term) -> None:
        if not isinstance(value, int) and self.history.value(value) is None:
            self.history.values[value] = write.value
        self.done.stores[write.number] = value

    def _register(self, name: str) -> Term:
        found = self.done.registers.get(name)
        return self.history.register(name, self.step, self.frame) if found is None else found

    def _term(self, expr: Expr) -> Term:
        tag = expr[0]
        if tag == "reg":
            return low(expr[2], self._register(expr[1]))
        if tag == "const":
            return int(expr[1]) & _MASK
        if tag == "load":
            if expr not in self.loads:
                self.loads[expr] = self._load(expr)
            return self.loads[expr]
        if tag == "bin":
            a, b = self._term(expr[3]), self._term(expr[4])
            if expr[1] == "add" and expr[2] == 8 and isinstance(b, int):
                return add(a, b)
            return binary(expr[1], expr[2], a, b)
        if tag == "un":
            value = self._term(expr[3])
            return negate(expr[2], value) if expr[1] == "neg" else invert(expr[2], value)
        if tag == "sext":
            return sext(expr[1], self._term(expr[2]))
        if tag == "percpu":
            return sym("percpu", self._term(expr[1]))
        return sym("lost", self.frame.number, (self.step, len(self.loads)))

    def _load(self, expr: Expr) -> Term:
        """What a load gives: what this run stored there, else memory as it was before."""
        _, where, size = expr
        address = self._term(where)
        number = len(self.loads)
        access = self.reads[number] if number < len(self.reads) else None
        if access is None or access.size != size:
            return sym("mem", address, size, self.step)
        stored = self._stored(access)
        if stored is not None:
            return low(size, stored)
        value = sym("mem", address, size, self.step)
        self.history.values[value] = access.value
        return value

    def _stored(self, access: Access) -> Term | None:
        """What a single earlier step stored in all that is read, None if none did."""
        steps = self.history.steps_of
        writes = steps.writers(access.address, access.size, access.number)
        if len(writes) != 1 or writes[0].address != access.address:
            return None
        maker = steps.access_step(writes[0].number)
        if writes[0].size < access.size or maker == self.step:
            return None
        return self.history.did(maker).stores.get(writes[0].number)
