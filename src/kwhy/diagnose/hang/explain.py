"""From a survey to the answer: what is stuck, on what, through whom, and why it will not end."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from kwhy.case.evidence import JSON, Evidence, MissingMemory
from kwhy.diagnose.hang import graph, say
from kwhy.diagnose.hang.claims import Claim
from kwhy.diagnose.hang.detail import Detail
from kwhy.diagnose.hang.disks import why_frozen
from kwhy.diagnose.hang.memory import Memory
from kwhy.diagnose.hang.objects import Objects
from kwhy.diagnose.hang.survey import Survey, survey
from kwhy.diagnose.hang.tasks import Task
from kwhy.diagnose.hang.userstacks import UserStacks
from kwhy.errors import FeatureError, NothingToExplain, UsageError
from kwhy.kernel.model import Kernel
from kwhy.verdict import common
from kwhy.verdict.hang import Reading, Root, Verdict, Wait
from kwhy.verdict.hang import Task as Told

MAX_SHOWN = 5000
"""Tasks that an answer describes one by one; the rest are counted in a note."""

MAX_USERS = 8
"""Tasks whose stacks in user space are shown, those that the first findings name."""

PROMPT = frozenset({"fuse", "nfs", "fanotify", "userfault", "vfork", "memory"})
PATIENCE = 10 * 10**9
"""Kinds of waits that are short where all is well, and after how many ns one is told of."""

UNWOKEN = (
    "it is free, and the first that waits for it was not woken: a wake-up was lost, or whoever "
    "gave it back has not come to that"
)

FREEZES = "super_block->s_writers"
"""The locks that freezing a file system takes for writing."""

Again = Callable[[], Evidence | None]
"""A second, fresh reading of a live target; None where nothing can have changed."""


def explain(kernel: Kernel, pids: Iterable[int] = (), again: Again = lambda: None) -> Verdict:
    """The answer for ``pids`` (processes or threads), or for every task that looks stuck.

    Raises NothingToExplain when nothing is stuck, UsageError for a pid that does not exist,
    FeatureError when the target's memory or types do not even give the list of tasks.
    """
    memory = Memory(kernel)
    if memory.type("struct task_struct") is None:
        raise FeatureError(
            "the layout of the kernel's structures is not known: it has no BTF that can be read; "
            "give its debug symbols with --debuginfo PATH",
            "BTF",
        )
    try:
        first = survey(memory)
    except (MissingMemory, LookupError) as error:
        raise FeatureError(f"the tasks cannot be listed: {error}", "kernel memory") from error
    still, twice = _still(kernel, first, again)
    claims = {address: first.claims[address] for address in first.claims if address in still}
    claims = {address: _woken(claim, claims, twice) for address, claim in claims.items()}
    asked = _asked(first, claims, still, tuple(pids))
    return _Answer(kernel, first, claims, asked).verdict()


def _still(kernel: Kernel, first: Survey, again: Again) -> tuple[set[int], bool]:
    """Tasks whose wait stood when it was looked at a second time; all where time stands still.

    And whether there was a second time.

    What the second look saw is an answer of the case, so that it says the same later.
    """

    def look() -> JSON:
        evidence = again()
        if evidence is None:
            return None
        second = survey(Memory(kernel, evidence))
        return {f"{address:x}": _print(second, address) for address in second.claims}

    seen = kernel.evidence.answer("hang/second look", look)
    if not isinstance(seen, dict):
        return set(first.claims), False
    return {a for a in first.claims if seen.get(f"{a:x}") == _print(first, a)}, True


def _woken(claim: Claim, still: Mapping[int, Claim], twice: bool) -> Claim:
    """A lock that is free at both looks, while its first waiter has slept all the time."""
    first = dict(claim.extra).get("free")
    if first is None:
        return claim
    if twice and first in still:
        return replace(claim, note=UNWOKEN, sure="observed")
    return replace(claim, extra=())


def _print(seen: Survey, address: int) -> JSON:
    """What must be the same at both looks for a wait to count."""
    task, claim = seen.task(address), seen.claims[address]
    owners: list[JSON] = [f"{owner:x}" for owner in claim.owners]
    owners.append(_several(claim.any_of) if claim.complete else None)
    free = ["free"] if "free" in dict(claim.extra) else []
    return [task.tid, task.state, task.switches, claim.kind, f"{claim.address:x}", owners, *free]


def _several(tasks: Sequence[int]) -> JSON:
    """Tasks, to be compared; of many their number and a sum must do."""
    if len(tasks) <= graph.FEW:
        return [f"{task:x}" for task in tasks]
    return [len(tasks), f"{sum(tasks):x}"]


def _asked(
    seen: Survey, claims: Mapping[int, Claim], still: set[int], pids: tuple[int, ...]
) -> list[int]:
    """Addresses of the tasks to explain, in the order of their numbers."""
    tasks = seen.tasks.by_address.values()
    if pids:
        chosen = [t for t in tasks if t.tid in pids or t.tgid in pids]
        missing = set(pids) - {t.tid for t in chosen} - {t.tgid for t in chosen}
        if missing:
            raise UsageError(f"no process or thread has the number {min(missing)}")
        stuck = {t.address for t in chosen}
        return sorted(_and_behind(claims, stuck), key=lambda a: seen.task(a).tid)
    everything = graph.build(claims, ())
    stuck = {t.address for t in tasks if t.state == "D" and t.address in still}
    stuck |= {a for cycle in (*everything.cycles, *everything.possible) for a in cycle}
    stuck |= {a for a in still if _overdue(seen, claims[a])}
    if not stuck:
        raise NothingToExplain("no task is stuck; name a process to see what it waits for")
    return sorted(_and_behind(claims, stuck), key=lambda a: seen.task(a).tid)


def _overdue(seen: Survey, claim: Claim) -> bool:
    """A wait that may be interrupted, for somebody who should have answered long ago."""
    since = seen.task(claim.task).seen
    return claim.kind in PROMPT and bool(since) and seen.now - since > PATIENCE


def _and_behind(claims: Mapping[int, Claim], stuck: set[int]) -> set[int]:
    """``stuck`` and who waits, in whatever state, for one of them."""
    waiting: dict[int, list[int]] = {}
    for address, claim in claims.items():
        for owner in claim.owners:
            waiting.setdefault(owner, []).append(address)
    found, queue = set(stuck), list(stuck)
    while queue:
        more = [a for a in waiting.get(queue.pop(), ()) if a not in found]
        found.update(more)
        queue += more
    return found


@dataclass(slots=True)
class _Answer:
    kernel: Kernel
    seen: Survey
    claims: Mapping[int, Claim]
    asked: list[int]

    def verdict(self) -> Verdict:
        waits_graph = graph.build(self.claims, self.asked)
        shown = sorted(waits_graph.reached(self.asked), key=lambda a: self._task(a).tid)
        detail = Detail(self.kernel, self.seen)
        waits, of_task = self._waits(shown, detail)
        tasks = tuple(detail.task(self.seen.task(a), of_task.get(a)) for a in shown[:MAX_SHOWN])
        roots = self._roots(waits_graph, waits, of_task)
        tasks = self._with_users(tasks, roots)
        told = set(shown)
        cycles = tuple(self._ring(c) for c in waits_graph.cycles if not told.isdisjoint(c))
        possible = tuple(self._ring(c) for c in waits_graph.possible if not told.isdisjoint(c))
        notes = self._notes()
        if len(shown) > MAX_SHOWN:
            notes.append(f"{len(shown) - MAX_SHOWN} more tasks are counted but not described")
        story = say.Story(tasks, waits, cycles, possible, roots)
        confidence = story.confidence()
        readings: tuple[Reading, ...] = ()
        if confidence == "ambiguous":
            readings = (
                Reading(summary="a deadlock, if the likely holder has it", tids=possible[0]),
                Reading(summary="no deadlock, if another task has it"),
            )
        return Verdict(
            summary=story.summary(),
            confidence=confidence,
            kernel=common.KernelId(
                release=self.kernel.release, build_id=self.kernel.build_id, arch=self.kernel.arch
            ),
            evidence=common.Evidence(notes=tuple(dict.fromkeys(notes))),
            tasks=tasks,
            waits=waits,
            cycles=cycles,
            candidates=readings,
            possible=possible,
            roots=roots,
        )

    def _with_users(self, tasks: tuple[Told, ...], roots: tuple[Root, ...]) -> tuple[Told, ...]:
        """``tasks``, those that the first findings name with their stacks in user space."""
        named = dict.fromkeys(tid for root in roots for tid in (*root.tids, *root.waiting[:2]))
        chosen = set(list(named)[:MAX_USERS])
        users = UserStacks(self.seen.look)

        def whole(task: Told) -> Told:
            seen = self.seen.tasks.by_tid.get(task.tid) if task.tid in chosen else None
            stack = self.seen.stacks.get(seen.address) if seen else None
            return replace(task, user=users.frames(stack)) if stack else task

        return tuple(whole(task) for task in tasks)

    def _notes(self) -> list[str]:
        """What was missing, as it was when the case was made."""
        told = self.kernel.evidence.answer(
            "hang/notes", lambda: [*self.seen.notes, *self.kernel.notes]
        )
        return [note for note in told if isinstance(note, str)] if isinstance(told, list) else []

    def _tids(self, tasks: Iterable[int]) -> tuple[int, ...]:
        return tuple(self.seen.task(task).tid for task in tasks)

    def _pids(self, tasks: Iterable[int]) -> tuple[int, ...]:
        """Their processes, each once."""
        return tuple(dict.fromkeys(self.seen.task(task).tgid for task in tasks))

    def _ring(self, tasks: Sequence[int]) -> tuple[int, ...]:
        """A cycle's tids, beginning at the lowest."""
        tids = self._tids(tasks)
        start = tids.index(min(tids))
        return tids[start:] + tids[:start]

    def _task(self, address: int) -> Task:
        return self.seen.task(address)

    def _waits(self, shown: list[int], detail: Detail) -> tuple[tuple[Wait, ...], dict[int, int]]:
        """Waits numbered in the order of their first waiter; those of all waiters, asked or not."""
        wanted = {_same(self.claims[address]) for address in shown if address in self.claims}
        names = Objects(self.seen.look)
        groups: dict[tuple[object, ...], list[Claim]] = {}
        for claim in sorted(self.claims.values(), key=lambda c: self._task(c.task).tid):
            if _same(claim) in wanted:
                # What has no address may be another thing for each task: its descriptor 3.
                stack = self.seen.stacks[claim.task]
                what = None if claim.address else names.named(claim, stack).object
                groups.setdefault((*_same(claim), what), []).append(claim)
        told = set(shown)
        groups = {k: g for k, g in groups.items() if any(c.task in told for c in g)}
        owned: dict[int, list[int]] = {}
        for claims in groups.values():
            for owner in claims[0].owners:
                owned.setdefault(owner, []).append(claims[0].address)
        taken = {owner: detail.taken(self._task(owner), locks) for owner, locks in owned.items()}
        waits, of_task = [], {}
        for number, claims in enumerate(groups.values()):
            first = claims[0]
            named = names.named(first, self.seen.stacks[first.task])
            frozen = named.name.startswith(FREEZES)
            note = why_frozen(self.seen.look, first.address) if frozen else first.note
            waits.append(
                Wait(
                    id=number,
                    kind="freeze" if frozen else first.kind,
                    address=f"{first.address:#x}" if first.address else "",
                    name=named.name,
                    object=named.object,
                    waiters=self._tids(claim.task for claim in claims),
                    owners=self._tids(first.owners),
                    proof=first.proof,
                    function=first.function,
                    known="observed" if frozen else first.sure,
                    candidates=self._tids(first.candidates),
                    behind=self._tids(dict.fromkeys(b for c in claims for b in c.behind)),
                    note=note or None,
                    any_of=self._pids(first.any_of),
                    complete=first.complete,
                    taken=tuple(
                        taken[owner][first.address]
                        for owner in first.owners
                        if first.address in taken[owner]
                    ),
                )
            )
            of_task.update({claim.task: number for claim in claims})
        return tuple(waits), of_task

    def _roots(
        self, found: graph.Waits, waits: tuple[Wait, ...], of_task: Mapping[int, int]
    ) -> tuple[Root, ...]:
        """The ends of the chains, worst first; each with the tasks behind it."""
        asked = set(self.asked)
        groups: dict[tuple[str, object], list[int]] = {}
        possible_of: dict[int, int] = {}
        for number, ring in enumerate(found.possible):
            for task in ring:
                possible_of.setdefault(task, number)
        for task in self.asked:
            end = found.ends[task]
            cycle = found.cycle_of.get(end)
            if cycle is not None:
                groups.setdefault(("deadlock", cycle), []).append(task)
                continue
            maybe = [possible_of[one] for one in (end, task) if one in possible_of]
            if maybe:
                groups.setdefault(("possible", min(maybe)), []).append(task)
                continue
            claim = self.claims.get(end)
            known = dict(claim.extra) if claim is not None else {}
            if "gone" in known or "free" in known:
                kind = "gone" if "gone" in known else "lost"
                groups.setdefault((kind, of_task.get(end)), []).append(task)
            elif (
                claim is not None
                and not claim.owners
                and len(self.seen.look.processes(claim.any_of)) > 1
            ):
                groups.setdefault(("any", of_task.get(end)), []).append(task)
            elif end in asked and claim and not claim.owners and self._task(end).state != "T":
                groups.setdefault(("unknown", of_task.get(end)), []).append(task)
            else:
                groups.setdefault((_ending(self._task(end)), end), []).append(task)
        roots = []
        for (kind, which), members in groups.items():
            roots.append(self._root(kind, which, members, found, waits, of_task))
        order = (
            "deadlock",
            "gone",
            "lost",
            "possible",
            "unknown",
            "any",
            "asleep",
            "ready",
            "running",
        )
        return tuple(sorted(roots, key=lambda root: (order.index(root.kind), root.tids)))

    def _root(
        self,
        kind: str,
        which: object,
        members: list[int],
        found: graph.Waits,
        waits: tuple[Wait, ...],
        of_task: Mapping[int, int],
    ) -> Root:
        waiting = self._tids(members)
        if kind in ("deadlock", "possible"):
            cycle = (found.cycles if kind == "deadlock" else found.possible)[int(str(which))]
            tids = self._ring(cycle)
            members_of = set(tids)
            behind = tuple(t for t in waiting if t not in members_of)
            return Root(
                kind="deadlock" if kind == "deadlock" else "possible",
                text=say.cycle_text(tids, behind), tids=tids, waiting=behind,
            )  # fmt: skip
        if kind in ("gone", "lost", "unknown"):
            wait = waits[int(str(which))] if which is not None else None
            return Root(
                kind="gone" if kind == "gone" else "lost" if kind == "lost" else "unknown",
                text=say.unowned(wait), tids=(), waiting=waiting, wait=wait.id if wait else None,
            )  # fmt: skip
        if kind == "any":
            wait = waits[int(str(which))]
            return Root(
                kind="any", text=say.several(wait, self.seen), tids=wait.any_of, waiting=waiting,
                wait=wait.id,
            )  # fmt: skip
        end = self._task(int(str(which)))
        wait_id = of_task.get(end.address)
        text = say.ending(end, waits[wait_id] if wait_id is not None else None)
        return Root(
            kind="running" if kind == "running" else "ready" if kind == "ready" else "asleep",
            text=text, tids=(end.tid,), waiting=tuple(t for t in waiting if t != end.tid),
            wait=wait_id,
        )  # fmt: skip


def _same(claim: Claim) -> tuple[object, ...]:
    """Equal for claims that wait for the same thing; of many tasks some are compared."""
    place = claim.address or claim.function
    far = (len(claim.any_of), claim.any_of[: graph.FEW])
    return (claim.kind, place, claim.owners, claim.extra, far, claim.object)


def _ending(task: Task) -> str:
    if task.on_cpu:
        return "running"
    return "ready" if task.state == "R" else "asleep"
