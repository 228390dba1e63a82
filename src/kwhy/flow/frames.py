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
from kwhy.flow.places import Call, Name, Place, Places

_MASK = (1 << 64) - 1


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


class Recovery:
    """Names of places per function, each analysed once."""

    def __init__(self, code: Code, arch: Arch) -> None:
        self.code, self.arch = code, arch
        self._places: dict[int, Places | None] = {}

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
    ) -> "Recovered":
        """The values on one stack, innermost frame first.

        ``saved`` are the preserved registers as the innermost frame left them, ``word`` reads the
        stack (None where it cannot).
        """
        return Recovered(self, frames, saved, word)


class Recovered:
    """What the frames of one stack held."""

    def __init__(
        self,
        recovery: Recovery,
        frames: Sequence[Frame],
        saved: dict[str, int],
        word: Callable[[int], int | None],
    ) -> None:
        self._recovery, self._frames, self._word = recovery, frames, word
        self._calls = [self._call(frame) for frame in frames]
        self._registers: list[dict[str, int]] = [dict(saved)]
        for number in range(len(frames) - 1):
            self._registers.append(self._callers(number))

    def _call(self, frame: Frame) -> Call | None:
        places = self._recovery.places(frame.entry)
        return places.calls.get(frame.pc) if places else None

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

    def named(self, number: int, name: Name, depth: int = 0) -> Value | None:
        """The value of a name of frame ``number``'s function, wherever it can be had."""
        if name.base == ("const",):
            return Value(name.offset & _MASK, "a constant")
        if name.base == ("stack",):
            return Value(self._frames[number].cfa + name.offset & _MASK, "an address on the stack")
        kept = self._kept(number, name)
        if kept is not None or name.base[0] != "entry":
            return kept
        register = str(name.base[1])
        if register in self._recovery.arch.arguments and depth < len(self._frames):
            passed = self._passed(number, register, depth + 1)
            if passed is not None and (passed.width == 8 or (name.offset, name.width) == (0, 4)):
                mask = _MASK if name.width == 8 else 0xFFFFFFFF
                return Value(passed.value + name.offset & mask, passed.source, name.width)
        elif number + 1 < len(self._frames):
            value = self._registers[number + 1].get(register)
            if value is not None:
                return Value(value + name.offset & _MASK, f"the caller's {register}")
        return None

    def argument(self, number: int, index: int) -> Value | None:
        """Argument ``index`` (from 0) of frame ``number`` as it was when the call was made."""
        registers = self._recovery.arch.arguments
        if index >= len(registers):
            return None
        kept = self._kept(number, Name(("entry", registers[index])))
        passed = self._passed(number, registers[index], 0)
        if kept is None or passed is None:
            return kept or passed
        mask = _MASK if kept.width == passed.width == 8 else 0xFFFFFFFF
        if kept.value & mask != passed.value & mask:
            return None
        return kept if kept.width == 8 else passed

    def _passed(self, number: int, register: str, depth: int) -> Value | None:
        """What the caller passed in ``register``: only where it calls this very function."""
        if number + 1 >= len(self._frames):
            return None
        call, frame = self._calls[number + 1], self._frames[number]
        if call is None or call.insn.target is None:
            return None
        if self._recovery.code.resolve(call.insn.target) != frame.entry:
            return None
        name = call.before.get(register)
        value = self.named(number + 1, name, depth) if name is not None else None
        if value is None:
            return None
        return Value(value.value, f"passed by the caller: {value.source}", value.width)

    def passed_at(self, number: int, call: Call, register: str) -> Value | None:
        """What another call of frame ``number``'s function was given, earlier in its run."""
        name = call.before.get(register)
        return self.named(number, name) if name is not None else None


def _saved(arch: Arch) -> frozenset[str]:
    return frozenset(arch.registers) - arch.clobbered - {arch.stack}
