"""The registers and arguments of every call on a stack, recovered from where they were kept.

Works inwards out: what the innermost function left in the registers that calls preserve is known,
and each function's code tells where it keeps its caller's. Every value says where it came from;
two sources that disagree give none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from kwhy.arch import Arch
from kwhy.errors import FATAL
from kwhy.flow.cfg import Code
from kwhy.flow.formula import CONST, STACK, Name, Place, evaluate, formula
from kwhy.flow.ir import Expr
from kwhy.flow.places import Call, Places
from kwhy.flow.tails import Tails, Ways

_MASK = (1 << 64) - 1
MAX_DEPTH = 60
"""Frames through which a value is followed outwards."""
MAX_FORMULAS = 16
"""Instructions through which a computed value is followed back."""


class Frame(Protocol):
    """A call in progress: ``pc`` is its return address, ``cfa`` the caller's stack pointer."""

    @property
    def pc(self) -> int: ...
    @property
    def cfa(self) -> int: ...
    @property
    def entry(self) -> int | None:
        """Where the function starts, None if that is not known."""
        ...


@dataclass(frozen=True, slots=True)
class Value:
    """A recovered value; ``width`` 4: only the low half is known. ``source`` is for a reader."""

    value: int
    source: str
    width: int = 8


@dataclass(frozen=True, slots=True)
class SystemCall:
    """The system call that a stack is in.

    ``function`` was called for it, and became frame number ``frame``, with the address ``regs`` of
    the user's registers. ``kept`` are the addresses of those that stay what they are until it ends,
    ``number`` is what the outermost frame found in the register of the result.
    """

    frame: int
    function: int
    regs: int
    number: int | None = None
    kept: frozenset[int] = frozenset()


class Recovery:
    """Names of places per function, each analysed once."""

    def __init__(self, code: Code, arch: Arch) -> None:
        self.code, self.arch = code, arch
        self._places: dict[int, Places | None] = {}
        self.tails = Tails(code, self.places)

    def places(self, entry: int | None) -> Places | None:
        """The analysis of the function at ``entry``; None if its code cannot be read."""
        if entry is None:
            return None
        if entry not in self._places:
            try:
                self._places[entry] = Places(self.code, self.arch, entry)
            except FATAL:
                raise
            except Exception:  # whatever keeps the code from being read or decoded
                self._places[entry] = None
        return self._places[entry]

    def stack(
        self,
        frames: Sequence[Frame],
        saved: dict[str, int],
        word: Callable[[int], int | None],
        load: Callable[[int, int], int | None] = lambda _address, _size: None,
        call: SystemCall | None = None,
    ) -> "Recovered":
        """The values on one stack, innermost frame first.

        ``saved`` are the preserved registers as the innermost frame left them, ``word`` reads the
        stack, ``load`` some bytes of any memory (None where they cannot).
        """
        return Recovered(self, frames, saved, word, load, call)


class Recovered:
    """What the frames of one stack held."""

    def __init__(
        self,
        recovery: Recovery,
        frames: Sequence[Frame],
        saved: dict[str, int],
        word: Callable[[int], int | None],
        load: Callable[[int, int], int | None],
        call: SystemCall | None,
    ) -> None:
        self._recovery, self._frames, self._word = recovery, frames, word
        self._load = load
        self._targets: dict[int, int | None] = {}
        self._depth = 0
        self._calls = [self._call(frame) for frame in frames]
        self._system = call if call is not None and self._runs(call) else None
        self._constant = call.kept if call is not None and self._system else frozenset()
        self._registers: list[dict[str, int]] = [dict(saved)]
        for number in range(len(frames) - 1):
            self._registers.append(self._callers(number))

    def _call(self, frame: Frame) -> Call | None:
        places = self._recovery.places(frame.entry)
        return places.calls.get(frame.pc) if places else None

    def _runs(self, system: SystemCall) -> bool:
        """Whether the system call's function still runs: what comes after it is called by name."""
        if not 0 <= system.frame < len(self._frames) - 1:
            return False
        call, entry = self._calls[system.frame + 1], self._frames[system.frame].entry
        target = call.insn.target if call is not None else None
        return target is None or self._recovery.code.resolve(target) != entry

    def _callers(self, number: int) -> dict[str, int]:
        """The preserved registers of the caller of frame ``number``, at its call."""
        call = self._calls[number]
        if call is None:
            return {}
        found = {}
        for register in self._registers[number] | dict.fromkeys(_saved(self._recovery.arch), 0):
            value = self._kept(number, Name(("entry", register)))
            if value is not None:
                found[register] = value.value
        return found

    def _read(self, number: int, place: Place) -> tuple[int, str] | None:
        """What a place of a frame holds now."""
        if isinstance(place, int):
            word = self._word(self._frames[number].cfa + place)
            return None if word is None else (word, "kept on the stack")
        value = self._registers[number].get(place)
        return None if value is None else (value, f"kept in {place}")

    def _kept(self, number: int, wanted: Name) -> Value | None:
        """The value of that name, from any place of the frame that still holds it."""
        call = self._calls[number]
        if call is None:
            return None
        found: dict[int, Value] = {}
        half: Value | None = None
        for place, name in call.surviving.items():
            if name.base != wanted.base:
                continue
            held = self._read(number, place)
            if held is None:
                continue
            value = held[0] - name.offset + wanted.offset
            if name.width == 8:
                mask = _MASK if wanted.width == 8 else 0xFFFFFFFF
                found[value & mask] = Value(value & mask, held[1], wanted.width)
            elif name.offset == wanted.offset:
                half = Value(held[0] & 0xFFFFFFFF, held[1], 4)
        if len(found) > 1:
            return None
        return next(iter(found.values())) if found else half

    def named(self, number: int, name: Name) -> Value | None:
        """The value of a name of frame ``number``'s function, wherever it can be had."""
        if name.base == CONST:
            return Value(name.offset & _MASK, "a constant")
        if name.base == STACK:
            return Value(self._frames[number].cfa + name.offset & _MASK, "an address on the stack")
        kept = self._kept(number, name)
        if kept is not None:
            return kept
        places = self._recovery.places(self._frames[number].entry)
        return self._lasting(places, name, lambda register: self._entered(number, register))

    def _entered(self, number: int, register: str) -> Value | None:
        """What frame ``number``'s function found in ``register``."""
        call, arch = self._system, self._recovery.arch
        if call is not None and (number, register) == (len(self._frames) - 1, arch.result):
            return None if call.number is None else Value(call.number, "the user's registers")
        kept = self._kept(number, Name(("entry", register)))
        if kept is not None and kept.width == 8:
            return kept
        if register in arch.arguments:
            return self._passed(number, register) or kept
        if number + 1 < len(self._frames) and register in self._registers[number + 1]:
            return Value(self._registers[number + 1][register], f"the caller's {register}")
        return kept

    def _lasting(
        self,
        places: Places | None,
        name: Name,
        entered: Callable[[str], Value | None],
        depth: int = 0,
    ) -> Value | None:
        """The value of a name that is the same whenever it is computed.

        ``entered`` tells what the function of ``places`` found in a register.
        """
        source = "a constant"
        made = places.made.get(name.base) if places and depth < MAX_FORMULAS else None

        def value(inner: Name) -> int | None:
            nonlocal source
            found = self._lasting(places, inner, entered, depth + _cost(made))
            source = found.source if found else source
            return found.value if found else None

        def load(address: int, size: int) -> int | None:
            nonlocal source
            start = address & -8
            word = self._word(start) if start in self._constant else None
            source = "the user's registers"
            return None if word is None else word >> 8 * (address - start) & (1 << 8 * size) - 1

        mask = _MASK if name.width == 8 else 0xFFFFFFFF
        if name.base == CONST:
            return Value(name.offset & mask, source, name.width)
        if name.base[0] == "entry":
            found = entered(str(name.base[1]))
            if found is None or (found.width == 4 and (name.offset, name.width) != (0, 4)):
                return None
            return Value(found.value + name.offset & mask, found.source, name.width)
        number = evaluate(made, value, load) if made is not None else None
        if number is None:
            return None
        return Value(number + name.offset & mask, source, name.width)

    def argument(self, number: int, index: int) -> Value | None:
        """Argument ``index`` (from 0) of frame ``number`` as it was when the call was made."""
        registers = self._recovery.arch.arguments
        if index >= len(registers):
            return None
        kept = self._kept(number, Name(("entry", registers[index])))
        passed = self._passed(number, registers[index])
        if kept is None or passed is None:
            return kept or passed
        mask = _MASK if kept.width == passed.width == 8 else 0xFFFFFFFF
        if kept.value & mask != passed.value & mask:
            return None
        return kept if kept.width == 8 else passed

    def _passed(self, number: int, register: str) -> Value | None:
        """What was passed to frame ``number`` in ``register``, by all ways that lead there."""
        target, entry = self._target(number), self._frames[number].entry
        if target is None or entry is None or self._depth > MAX_DEPTH:
            return None
        ways = self._recovery.tails.ways(target, entry)
        if ways is None:
            return None
        self._depth += 1
        value = self._arrived(number, ways, entry, register, ())
        self._depth -= 1
        if value is None:
            return None
        return Value(value.value, f"passed by the caller: {value.source}", value.width)

    def _target(self, number: int) -> int | None:
        """The function that the caller of frame ``number`` called."""
        if self._system is not None and self._system.frame == number:
            return self._system.function
        if number + 1 >= len(self._frames):
            return None
        call = self._calls[number + 1]
        if call is None:
            return None
        if call.insn.target is not None:
            return self._recovery.code.resolve(call.insn.target)
        if number not in self._targets:
            self._targets[number] = None
            made = formula(call.before, call.insn.through or ("unknown",))
            if made is not None:
                self._targets[number] = self._now(number + 1, made)
        return self._targets[number]

    def _now(self, number: int, made: Expr, depth: int = 0) -> int | None:
        """What a formula of frame ``number`` gives with memory as it is now.

        Good enough for the target of a call: memory that has changed since names no function from
        which there is a way to the one that runs.
        """
        places = self._recovery.places(self._frames[number].entry)

        def value(name: Name) -> int | None:
            found = self.named(number, name)
            if found is not None and found.width >= name.width:
                return found.value
            inner = places.made.get(name.base) if places and depth < MAX_FORMULAS else None
            now = self._now(number, inner, depth + _cost(inner)) if inner is not None else None
            mask = _MASK if name.width == 8 else 0xFFFFFFFF
            return None if now is None else now + name.offset & mask

        return evaluate(made, value, self._load)

    def _arrived(
        self, number: int, ways: Ways, function: int, register: str, above: tuple[int, ...]
    ) -> Value | None:
        """What ``function``, on the way to frame ``number``, found in ``register``."""
        if function in above:
            return None
        found = [self._sent(number, register)] if function == ways.target else []
        for source, places, tail in ways.into.get(function, ()):
            name = tail.before.get(register)

            def entered(wanted: str, source: int = source) -> Value | None:
                return self._arrived(number, ways, source, wanted, (*above, function))

            found.append(self._lasting(places, name, entered) if name is not None else None)
        first = found[0] if found else None
        same = all(
            first and value and (value.value, value.width) == (first.value, first.width)
            for value in found
        )
        return first if same else None

    def _sent(self, number: int, register: str) -> Value | None:
        """What was in ``register`` at the call that became frame ``number``."""
        if self._system is not None and self._system.frame == number:
            if register != self._recovery.arch.arguments[0]:
                return None
            return Value(self._system.regs, "where the user's registers are")
        call = self._calls[number + 1]
        name = call.before.get(register) if call is not None else None
        return self.named(number + 1, name) if name is not None else None

    def passed_at(self, number: int, call: Call, register: str) -> Value | None:
        """What another call of frame ``number``'s function was given, earlier in its run."""
        name = call.before.get(register)
        return self.named(number, name) if name is not None else None


def _cost(made: Expr | None) -> int:
    """How much a formula counts of those that may be followed; meeting paths multiply."""
    return 5 if made is not None and made[0] == "either" else 1


def _saved(arch: Arch) -> frozenset[str]:
    return frozenset(arch.registers) - arch.clobbered - {arch.stack}
