"""The answer in sentences: the headline first, then one for each end of a chain."""

from collections.abc import Sequence
from dataclasses import dataclass

from kwhy.diagnose.hang.survey import Survey
from kwhy.diagnose.hang.tasks import Task as Seen
from kwhy.verdict.common import Confidence
from kwhy.verdict.hang import KINDS, WANTED, Root, Task, Wait

_RING = 12  # members of a cycle that a sentence names
FAR = 4
"""Of those who could end a wait, so many are named."""


def count(number: int, one: str) -> str:
    """ "1 task", "3 tasks"."""
    return f"{number:,} {one}" if number == 1 else f"{number:,} {one}s"


def thing(wait: Wait) -> str:
    """What is waited for: the object if it has a name, else the lock."""
    kind = wait.kind.removesuffix("-read").removesuffix("-write")
    if wait.object:
        return wait.object
    if wait.name:
        return f"{kind} {wait.name}"
    return f"{kind} at {wait.address}" if wait.address else f"{kind} in {wait.function}()"


def wanted(wait: Wait) -> str:
    """The same as what a task waits for: "data in pipe:[7]"."""
    if wait.object and wait.kind in WANTED:
        return WANTED[wait.kind].format(wait.object)
    if wait.kind == "timer":
        return "time to pass"
    return thing(wait)


def _held(wait: Wait) -> str:
    """A lock is held; a task that has to end, or to answer, holds nothing."""
    return "" if wait.kind in ("vfork", "threads", "workqueue", "helper", "lease") else ", held"


def cycle_text(tids: Sequence[int], behind: Sequence[int]) -> str:
    """ "1 -> 2 -> 1; 3 more tasks wait behind them"; of a long cycle the first and the last."""
    names = [str(tid) for tid in tids]
    left = len(names) - _RING
    if left > 0:
        names[_RING - 1 : -1] = [f"({left:,} more)"]
    ring = " -> ".join((*names, names[0]))
    return f"{ring}; {_behind(len(behind))}" if behind else ring


def _behind(number: int) -> str:
    return f"{count(number, 'more task')} {'waits' if number == 1 else 'wait'} behind them"


def unowned(wait: Wait | None) -> str:
    """A wait that nobody is known to be able to end."""
    if wait is None:
        return "what it waits for is not known"
    note = f": {wait.note}" if wait.note else ""
    return f"{wanted(wait)}{note}"


def ending(end: Seen, wait: Wait | None) -> str:
    """What the last owner of a chain does."""
    who = f"{end.tid} {end.comm}"
    if end.on_cpu:
        return f"{who} is running"
    if end.state == "R":
        return f"{who} is ready to run"
    if end.state in "ZX":
        return f"{who} has ended"
    if end.state == "T":
        return f"{who} is stopped by a signal; SIGCONT lets it go on"
    if end.state == "t":
        return f"{who} is stopped by a tracer"
    if wait is None:
        return f"{who} sleeps"
    return f"{who} sleeps, waiting for {wanted(wait)}"


def several(wait: Wait, seen: Survey) -> str:
    """Who of several could end a wait, and what the first of them do."""
    told = []
    for pid in wait.any_of[:FAR]:
        task = seen.tasks.by_tid.get(pid)
        claim = seen.claims.get(task.address) if task else None
        doing = f" ({KINDS.get(claim.kind, claim.kind)})" if claim else ""
        told.append(f"{pid} {task.comm}{doing}" if task else str(pid))
    more = len(wait.any_of) - len(told)
    who = ", ".join(told) + (f" and {more:,} more" if more > 0 else "")
    return f"{wanted(wait)}: any of {len(wait.any_of)} processes can end it: {who}"


@dataclass(frozen=True, slots=True)
class Story:
    """The parts of an answer, from which its headline and its confidence follow."""

    tasks: Sequence[Task]
    waits: Sequence[Wait]
    cycles: Sequence[Sequence[int]]
    possible: Sequence[Sequence[int]]
    roots: Sequence[Root]

    def confidence(self) -> Confidence:
        """How sure the headline is."""
        if self.cycles:
            told = self.roots[0] if self.roots else None
            members = set(told.tids if told and told.kind == "deadlock" else self.cycles[0])
            known = {w.known for w in self.waits if not members.isdisjoint(w.waiters)}
            return "observed" if known <= {"observed"} else "deduced"
        first = self.roots[0].kind if self.roots else "unknown"
        if first == "possible":
            return "ambiguous"
        if first not in ("unknown", "any", "gone", "lost"):
            ends = set(self.roots[0].tids)
            ending = [w for w in self.waits if ends & {*w.owners, *w.any_of}]
            sure = not ending or any(w.known == "observed" for w in ending)
            return "observed" if sure else "deduced"
        wait = next((w for w in self.waits if w.id == self.roots[0].wait), None)
        return (wait.known if wait is not None else None) or "unknown"

    def summary(self) -> str:
        """One sentence: the worst that was found, and how much more there is."""
        if not self.roots:
            return "nothing that the named tasks wait for is known"
        first = self.roots[0]
        text = self._root(first)
        same = [root for root in self.roots[1:] if root.kind == first.kind]
        if same and first.kind == "deadlock":
            text += f"; {count(len(same), 'more deadlock')}"
        elif len(self.roots) > 1:
            text += f"; {count(len(self.roots) - 1, 'other finding')}"
        return text

    def _root(self, root: Root) -> str:
        if root.kind == "deadlock":
            text = f"{self._names(root.tids)} deadlock{self._on(root.tids)}"
            if len(root.tids) == 1:
                text = f"{self._names(root.tids)} waits for itself{self._on(root.tids)}"
            return f"{text}; {_behind(len(root.waiting))}" if root.waiting else text
        if root.kind == "possible":
            return f"{self._names(root.tids)} may be in a deadlock{self._on(root.tids)}"
        waiting = self._who(root.waiting or root.tids)
        if root.kind in ("gone", "lost", "unknown", "any"):
            return f"{waiting} for {root.text}"
        if not root.waiting:
            return root.text
        ends = set(root.tids)
        held = next((w for w in self.waits if set(w.owners) & ends), None)
        ends |= {task.pid for task in self.tasks if task.tid in ends and task.pid}
        far = next((w for w in self.waits if set(w.any_of) & ends), None)
        what = f"for {wanted(held)}{_held(held)}: " if held else "for a task: "
        if far is not None and held is None:
            what = f"for {wanted(far)}: "
        first = self._first(root.waiting)
        if first is not None and first not in (held, far):
            what = f"for {wanted(first)}, in the end {what}"
        return f"{waiting} {what}{root.text}; this is no deadlock"

    def _first(self, tids: Sequence[int]) -> Wait | None:
        """What all of ``tids`` wait for themselves, None if that is not one thing."""
        mine = [wait for wait in self.waits if not set(tids).isdisjoint(wait.waiters)]
        return mine[0] if len(mine) == 1 else None

    def _who(self, tids: Sequence[int]) -> str:
        if len(tids) == 1:
            return f"{self._names(tids)} waits"
        return f"{count(len(tids), 'task')} wait"

    def _names(self, tids: Sequence[int]) -> str:
        comm = {task.tid: task.comm for task in self.tasks}
        names = [f"{tid} {comm.get(tid, '')}".strip() for tid in tids]
        if len(names) > 5:
            names = [*names[:4], f"{len(names) - 4} more"]
        return " and ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"

    def _on(self, tids: Sequence[int]) -> str:
        """The objects of a cycle, or where none has a name its locks."""
        members = set(tids)
        mine = [
            wait
            for wait in self.waits
            if not members.isdisjoint((*wait.owners, *wait.any_of) or wait.candidates)
            and not members.isdisjoint(wait.waiters)
        ]
        objects = list(dict.fromkeys(w.object for w in mine if w.object))
        things = objects or list(dict.fromkeys(thing(w) for w in mine))
        shown = " and ".join(things[:3]) + (" and more" if len(things) > 3 else "")
        return f" on {shown}" if shown else ""
