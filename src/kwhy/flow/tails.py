"""Ways from one function to another by jumps alone: the frames that tail calls do not leave.

A stack shows who returns to whom, not who was called: the function that was may have gone on in
another one. What that one found in its registers then is what the jumps left there.
"""

from collections.abc import Callable
from dataclasses import dataclass

from kwhy.errors import FATAL
from kwhy.flow.cfg import Code
from kwhy.flow.formula import STACK, Name
from kwhy.flow.places import Places, Tail

MAX_FUNCTIONS = 64


@dataclass(frozen=True, slots=True)
class Ways:
    """All ways from a call of ``target`` to a function's start.

    ``into`` are the jumps into each function on the way, with the analysis of where they are from.
    """

    target: int
    into: dict[int, list[tuple[int, Places, Tail]]]


class Tails:
    """Finds ways in one kernel's code; ``places`` analyses a function, None where it cannot."""

    def __init__(self, code: Code, places: Callable[[int | None], Places | None]) -> None:
        self._code, self._places = code, places
        self._found: dict[tuple[int, int], Ways | None] = {}

    def ways(self, target: int, entry: int) -> Ways | None:
        """From ``target`` to ``entry``; None if there are none, or others cannot be ruled out."""
        if target == entry:
            return Ways(target, {})
        if (target, entry) not in self._found:
            self._found[target, entry] = self._ways(target, entry)
        return self._found[target, entry]

    def _ways(self, target: int, entry: int) -> Ways | None:
        sources: dict[int, set[int]] = {target: set()}
        todo = [target]
        while todo:
            function = todo.pop()
            following = self._following(function)
            if following is None or len(sources) > MAX_FUNCTIONS:
                return None
            for to in following:
                if to not in sources and to != entry:
                    todo.append(to)
                sources.setdefault(to, set()).add(function)
        if entry not in sources:
            return None
        into: dict[int, list[tuple[int, Places, Tail]]] = {}
        todo = [entry]
        while todo:
            function = todo.pop()
            into[function] = []
            for source in sources[function]:
                jumps = self._jumps(source, function)
                if jumps is None:
                    return None
                into[function] += jumps
                if source not in into and source not in todo:
                    todo.append(source)
        return Ways(target, into)

    def _following(self, function: int) -> set[int] | None:
        """Where a function can go on in others; None if that is not known."""
        symbol = self._code.kernel.symbols.at(function)
        if symbol is None or symbol.address != function:
            return None
        try:
            code = self._code.function(function)
        except FATAL:
            raise
        except Exception:  # whatever keeps the code from being read or decoded
            return None
        if code.incomplete:
            return None
        found = set()
        for segment in code.segments.values():
            for to in segment.leaves(code.segments):
                if to is None:
                    return None
                found.add(self._code.resolve(to))
        return found

    def _jumps(self, source: int, to: int) -> list[tuple[int, Places, Tail]] | None:
        places = self._places(source)
        jumps = [
            (source, places, tail)
            for tail in (places.tails if places else ())
            if places is not None
            and tail.target is not None
            and self._code.resolve(tail.target) == to
        ]
        whole = all(
            tail.before.get(self._code.arch.stack) == Name(STACK, -8) for _f, _p, tail in jumps
        )
        return jumps if jumps and whole else None
