"""Which branches decided a value: the dynamic backward slice of an execution.

A step matters when its value flows into the result, or when it is a branch that decided whether
such a step ran at all. The first is known from :class:`History`; the second is control dependence,
by post-dominators of each function's control-flow graph, taken at the last execution before.
"""

import bisect
import functools
from typing import Any, NamedTuple

from kwhy.emulate.frames import Frame
from kwhy.emulate.history import History
from kwhy.errors import FATAL
from kwhy.flow.cfg import NORETURN, Code, Function

MAX_SLICE = 50_000
MAX_KEPT = 64
"""Branches that are asked whether they went past another value for the same register."""
_EXIT = -1


def decided(history: History, *, deep: bool = False, addresses: bool = False) -> list[int]:
    """The branch steps behind the outermost function's result, in the order they ran.

    Of a run that did not return: those behind its getting to where it stopped. ``deep`` adds the
    branches behind the values that those compared, and so on; ``addresses`` follows also the values
    that only formed addresses.
    """
    if not history.steps:
        return []
    slicer = _Slicer(history, addresses, kept=True)
    first = history.all_frames[0]
    made = history.result_step(first)
    if first.result is not None and made is not None:
        slicer.follow(made)
        slicer.keep_result(made)
    else:
        slicer.control(len(history.steps) - 1)
    if deep:
        slicer.deepen()
    return sorted(slicer.found)


def behind(history: History) -> set[int]:
    """All steps that the outermost function's result came from, and what decided that they ran."""
    slicer = _Slicer(history, addresses=True)
    made = history.result_step(history.all_frames[0]) if history.steps else None
    if made is not None:
        slicer.follow(made)
    slicer.deepen()
    return slicer.done


def asked(history: History, branch: int) -> set[int]:
    """The steps that what a branch compares came from, and what decided that they ran."""
    slicer = _Slicer(history, addresses=False)
    for step in history.asked(branch):
        slicer.follow(step)
    slicer.deepen()
    return slicer.done


def asked_by_all(history: History) -> set[int]:
    """All steps that what any branch compared came from."""
    slicer = _Slicer(history, addresses=True)
    slicer.found = set(history.branches)
    slicer.deepen()
    return slicer.done


class _Slicer:
    """``kept``: also branches that went past what would have made another value."""

    def __init__(self, history: History, addresses: bool, *, kept: bool = False) -> None:
        self.history = history
        self.kept = kept
        self.addresses = addresses
        self.found: set[int] = set()
        self.done: set[int] = set()

    def follow(self, step: int) -> None:
        """The steps whose values flow into that of ``step``, and what decided that they ran."""
        history, todo = self.history, [step]
        while todo and len(self.done) < MAX_SLICE:
            step = todo.pop()
            if step in self.done or step < 0:
                continue
            self.done.add(step)
            if step in history.branches:
                self.found.add(step)
            makers = list(history.data(step))
            todo += makers
            if self.kept:
                self._keep(step, makers)
            if self.addresses:
                todo += history.places(step)
            self.control(step)

    def control(self, step: int) -> None:
        """What decided that ``step`` ran, in its frame and in those around it."""
        number: int | None = self.history.frame_at[step]
        while number is not None:
            frame = self.history.all_frames[number]
            branch = self._controlling(frame, step)
            if branch is None:
                number, step = frame.parent, frame.by
                continue
            if branch in self.found:
                return
            self.found.add(branch)
            step = branch

    def keep_result(self, made: int) -> None:
        """The branches between where the result was made and the return from the first frame."""
        history, since = self.history, made
        number: int | None = history.frame_at[made]
        while number is not None:
            frame = history.all_frames[number]
            self._past(frame, since, frame.end, frozenset({history.arch.result}))
            number, since = frame.parent, frame.end

    def _keep(self, step: int, makers: list[int]) -> None:
        """The same between where a register was set and where it was used, in one frame."""
        history = self.history
        frame = history.frame_at[step]
        user = history.steps_of.insn(step)
        for maker in makers:
            if 0 <= maker < step and history.frame_at[maker] == frame:
                through = user.uses & history.steps_of.insn(maker).defines
                self._past(history.all_frames[frame], maker, step, through)

    def _past(self, frame: Frame, since: int, until: int, registers: frozenset[str]) -> None:
        own = self.history.branches_by_frame.get(frame.number)
        if not own or not registers:
            return
        first, last = bisect.bisect_right(own, since), bisect.bisect_left(own, until)
        for branch in own[max(first, last - MAX_KEPT) : last]:
            insn = self.history.steps_of.insn(branch)
            if branch in self.found or insn.kind != "branch":
                continue
            other = insn.end if self.history.taken(branch) else insn.target
            if other is not None and registers & _sets(
                self.history.code, frame.entry, insn.address, other
            ):
                self.found.add(branch)
                self.control(branch)

    def deepen(self) -> None:
        """The same for what the found branches compared, until nothing is added."""
        asked: set[int] = set()
        while new := self.found - asked:
            asked |= new
            for branch in new:
                for step in self.history.asked(branch):
                    self.follow(step)

    def _controlling(self, frame: Frame, step: int) -> int | None:
        """The last branch before ``step`` in its frame that decided whether it ran."""
        own = self.history.branches_by_frame.get(frame.number)
        if not own:
            return None
        graph = _dependence(self.history.code, frame.entry)
        if graph is None:
            return None
        segments, controls, _ = graph
        here = segments.get(self.history.steps[step])
        if here is None:
            return None
        deciding = controls.get(here, frozenset())
        if not deciding:
            return None
        for at in range(bisect.bisect_left(own, step) - 1, -1, -1):
            branch = own[at]
            segment = segments.get(self.history.steps[branch])
            if segment in deciding and self.history.steps_of.insn(branch).kind == "branch":
                return branch
        return None


class _Graph(NamedTuple):
    """Segment of each instruction; per segment the segments whose branch it depends on, and the one
    where all ways from it meet again."""

    segments: dict[int, int]
    controls: dict[int, frozenset[int]]
    meets: dict[int, int]


@functools.lru_cache(maxsize=4096)
def _dependence(code: Code, entry: int) -> _Graph | None:
    """Segment of each instruction, and per segment the segments whose branch it depends on."""
    try:
        function = code.function(entry)
    except FATAL:
        raise
    except Exception:  # whatever keeps its code from being read: then nothing is known of it
        return None
    segments = {
        insn.address: start
        for start, segment in function.segments.items()
        for insn in segment.insns
    }
    return _Graph(segments, *_control_dependence(code, function))


@functools.lru_cache(maxsize=65536)
def _sets(code: Code, entry: int, branch: int, other: int) -> frozenset[str]:
    """The registers that may be set on the ``other`` way from a branch, until the ways meet."""
    graph = _dependence(code, entry)
    if graph is None or other not in graph.meets:
        return frozenset()
    function = code.function(entry)
    meet = graph.meets.get(graph.segments.get(branch, -1))
    found: set[str] = set()
    todo, done = [other], {meet}
    while todo:
        start = todo.pop()
        if start in done:
            continue
        done.add(start)
        segment = function.segments[start]
        for insn in segment.insns:
            found |= insn.defines
        if segment.kind in ("call", "tail"):
            found |= code.arch.clobbered
        todo += [to for to in segment.successors() if to in graph.meets]
    return frozenset(found)


def _control_dependence(
    code: Code, function: Function
) -> tuple[dict[int, frozenset[int]], dict[int, int]]:
    """Ferrante, Ottenstein and Warren (1987): by post-dominators.

    Ways that end in a function that never comes back (a stack check, a panic) do not count: what
    avoided them decided nothing.
    """
    import networkx as nx  # a tenth of a second, which a call without questions need not spend

    graph: Any = nx.DiGraph()
    for start, segment in function.segments.items():
        if segment.kind == "call" and segment.target and code.name(segment.target) in NORETURN:
            continue
        onward = [to for to in segment.successors() if to in function.segments]
        for to in onward:
            graph.add_edge(to, start)
        if not onward and segment.kind in ("return", "tail"):
            graph.add_edge(_EXIT, start)
    if _EXIT not in graph:
        return {}, {}
    above: dict[int, int] = nx.immediate_dominators(graph, _EXIT)
    out: dict[int, set[int]] = {}
    for start, segment in function.segments.items():
        onward = [to for to in segment.successors() if to in function.segments]
        if len(onward) < 2 or start not in above:
            continue
        for to in onward:
            if to not in above:
                continue
            runner: int | None = to
            seen = 0
            while runner is not None and runner not in (above[start], _EXIT) and seen < 10_000:
                out.setdefault(runner, set()).add(start)
                parent = above.get(runner)
                runner = parent if parent != runner else None
                seen += 1
    return {start: frozenset(found) for start, found in out.items()}, above
