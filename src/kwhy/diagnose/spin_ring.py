"""Functions that hand over to each other by jumps (sibling calls), as one function with a loop.

Such a function never comes back to whom it was called by, and is entered again and again: no frame
of the ring stays, only the one that called into it, which has no loop for the samples.
"""

from dataclasses import replace

from kwhy.diagnose.spin_frames import Place, function_of
from kwhy.flow.cfg import Code, Function, Segment
from kwhy.kernel.model import Kernel

MAX_RING = 8  # functions in one


def ring(kernel: Kernel, code: Code, caller: Place) -> tuple[Function, Place] | None:
    """What the call that ``caller`` is in led to, as one function, and the samples' place in that;
    None if nothing there is handed over."""
    if not caller.below:
        return None
    entry, name = function_of(kernel, caller.below[0])
    if entry is None:
        return None
    parts = _parts(code, entry)
    if len(parts) < 2:
        return None
    segments = {
        start: _joined(code, segment, parts)
        for part in parts.values()
        for start, segment in part.segments.items()
    }
    callees = frozenset().union(*(part.callees for part in parts.values()))
    above = (caller.at[0] + 1, *caller.above)
    return Function(name, entry, segments, callees), Place(
        entry, name, caller.below, above[0], above
    )


def _parts(code: Code, entry: int) -> dict[int, Function]:
    """The function and those that it hands over to, directly or through others, by entry."""
    found: dict[int, Function] = {}
    todo = [entry]
    while todo and len(found) < MAX_RING:
        at = todo.pop(0)
        symbol = code.kernel.symbols.at(at)
        if at in found or symbol is None or symbol.address != at:
            continue
        found[at] = code.function(at)
        todo += [
            code.resolve(each.target)
            for each in found[at].segments.values()
            if each.kind == "tail" and each.target is not None
        ]
    return found


def _joined(code: Code, segment: Segment, parts: dict[int, Function]) -> Segment:
    """A segment whose jump to another part of the ring is one within a function."""
    if segment.kind != "tail" or segment.target is None:
        return segment
    to = code.resolve(segment.target)
    return replace(segment, kind="jump", target=to) if to in parts else segment
