"""The answer of ``kwhy hang`` for a person: the headline, each finding, the stacks behind it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from kwhy.report import calls, context, terminal, words
from kwhy.report.page import Page
from kwhy.verdict.fail import FailedCall
from kwhy.verdict.hang import KINDS, WANTED, Frame, Root, Taken, Task, Verdict, Wait

_SURE: Final = {
    "observed": "who waits and who holds was read from the locks themselves",
    "deduced": "one holder is not recorded, and no other task fits",
    "ambiguous": "who holds one of the locks is not recorded",
    "unknown": "what would end the wait is not recorded",
}
_TITLES: Final = {
    "deadlock": "deadlock:",
    "gone": "never released:",
    "lost": "free, and not woken:",
    "possible": "possibly a deadlock:",
    "unknown": "waiting:",
    "any": "waiting for one of several:",
    "asleep": "waiting for a sleeper:",
    "ready": "waiting, no deadlock:",
    "running": "waiting, no deadlock:",
}
MAX_NAMED: Final = 6  # tasks of a group that are named; the rest is a count
MAX_RING: Final = 12  # members of a cycle that are drawn; of a longer one the first and the last
_STACKS: Final = 12  # tasks whose stacks are printed; JSON has them all
_FINDINGS: Final = 20


def render(verdict: Verdict, width: int = terminal.WIDTH) -> Page:
    """The report as a page of ``width`` columns."""
    page = Page(width=max(40, width))
    page.write(("hang: ", "bold red"), (verdict.summary, "bold"), hang=6)
    tasks = {task.tid: task for task in verdict.tasks}
    waits = {wait.id: wait for wait in verdict.waits}
    of_task = {tid: wait for wait in verdict.waits for tid in wait.waiters}
    for root in verdict.roots[:_FINDINGS]:
        _finding(page, root, tasks, waits, of_task)
    if len(verdict.roots) > _FINDINGS:
        left = len(verdict.roots) - _FINDINGS
        page.heading(f"and {words.count(left, 'more finding')}", "; --json has them all")
    _stacks(page, verdict, tasks)
    _sure(page, verdict)
    return page


def _finding(
    page: Page,
    root: Root,
    tasks: dict[int, Task],
    waits: dict[int, Wait],
    of_task: dict[int, Wait],
) -> None:
    page.heading(_TITLES[root.kind])
    if root.kind in ("deadlock", "possible"):
        _ring(page, root.tids, tasks, waits)
        _behind(page, root.waiting, tasks, of_task)
        return
    wait = waits.get(root.wait) if root.wait is not None else None
    if root.kind in ("gone", "lost", "unknown") and wait is not None:
        page.write((lock(wait), "bold"), indent=2, hang=4)
        page.write((wait.note or KINDS.get(wait.kind, ""), ""), indent=4)
        if len(wait.waiters) == len(root.waiting):
            page.write(
                (f"{words.count(len(root.waiting), 'task')}: ", ""),
                (listed(root.waiting, tasks), ""),
                indent=2,
                hang=4,
            )
            return
    elif root.tids:
        page.write((root.text, "bold"), indent=2, hang=4)
    _behind(page, root.waiting, tasks, of_task)


def _ring(page: Page, tids: Sequence[int], tasks: dict[int, Task], waits: dict[int, Wait]) -> None:
    left = len(tids) - MAX_RING
    shown = [*range(MAX_RING - 1), len(tids) - 1] if left > 0 else range(len(tids))
    held = _held({tids[number] for number in shown}, waits)
    for number in shown:
        tid = tids[number]
        if left > 0 and number == shown[-1]:
            more = f"{words.count(left, 'more task')}, each waiting for the next"
            page.raw(("  |   ", "blue"), (more, "dim"))
        page.write(("  +-> " if not number else "  |   ", "blue"), (who(tid, tasks), "bold"))
        task = tasks.get(tid)
        wait = waits.get(task.waits_for) if task and task.waits_for is not None else None
        bar = ("  |     ", "blue")
        if task and task.syscall:
            page.raw(bar, (f"in {_call(task)}{_since(task)}", ""))
        for what, taken in held.get(tid, ()):
            place = words.place(taken.file, taken.line)
            where = f"in {taken.function}()" + (f", {place}" if place else "")
            plain = replace(what, kind=what.kind.removesuffix("-write").removesuffix("-read"))
            _barred(page, bar, f"took {lock(plain)} {where}")
        if wait is not None:
            _barred(page, bar, f"waits for {lock(wait)},")
            page.raw(bar, (_by(wait, tids[(number + 1) % len(tids)]), ""))
    page.write(("  +-- ", "blue"), (who(tids[0], tasks), "bold"))


def _held(tids: set[int], waits: dict[int, Wait]) -> dict[int, list[tuple[Wait, Taken]]]:
    """What each of ``tids`` is known to have taken."""
    found: dict[int, list[tuple[Wait, Taken]]] = {}
    for wait in waits.values():
        for taken in wait.taken:
            if taken.tid in tids:
                found.setdefault(taken.tid, []).append((wait, taken))
    return found


def _barred(page: Page, bar: tuple[str, str], text: str) -> None:
    """Wrapped text with the ring's line at its left."""
    inner = Page(width=page.width - len(bar[0]))
    inner.write((text, ""), hang=2)
    page.lines += [[bar, *line] for line in inner.lines]


def _by(wait: Wait, following: int) -> str:
    """What makes a waiter depend on the next member of a cycle."""
    if following in wait.owners:
        return "held by"
    if following in wait.behind:
        return "queued behind"
    if wait.any_of:
        return "which only these can end:" if len(wait.any_of) > 1 else "to be ended by"
    return "held by" if wait.owners else "perhaps held by"


def _behind(
    page: Page, waiting: Sequence[int], tasks: dict[int, Task], of_task: dict[int, Wait]
) -> None:
    """The tasks behind, grouped by what they wait for: a thousand alike are one line."""
    groups: dict[int | None, list[int]] = {}
    known = {wait.id: wait for wait in of_task.values()}
    for tid in waiting:
        own = of_task.get(tid)
        groups.setdefault(own.id if own else None, []).append(tid)
    for which, members in groups.items():
        wait = known.get(which) if which is not None else None
        for_what = f" for {lock(wait)}" if wait else ""
        verb = "waits" if len(members) == 1 else "wait"
        page.write(
            (f"{words.count(len(members), 'task')} {verb}{for_what}: ", ""),
            (listed(members, tasks), ""),
            indent=2,
            hang=4,
        )


def listed(tids: Sequence[int], tasks: dict[int, Task]) -> str:
    names = [who(tid, tasks) for tid in tids[:MAX_NAMED]]
    more = len(tids) - len(names)
    return ", ".join(names) + (f" and {more:,} more" if more else "")


def who(tid: int, tasks: dict[int, Task]) -> str:
    task = tasks.get(tid)
    return f"{tid} {task.comm}" if task else str(tid)


def lock(wait: Wait) -> str:
    """ "rwsem-write inode->i_rwsem of /opt/fire.js", "data in pipe:[7]"."""
    if wait.kind in WANTED and (wait.object or "{}" not in WANTED[wait.kind]):
        return WANTED[wait.kind].format(wait.object)
    name = wait.name or (wait.address if not wait.object else "")
    text = f"{wait.kind} {name}".strip() if name != wait.kind else wait.kind
    if wait.object:
        text += f" of {wait.object}"
    if not wait.name and not wait.object and wait.function:
        text += f" in {wait.function}()"
    return text


def _call(task: Task) -> str:
    """The system call as strace would print it."""
    call = FailedCall(
        pid=task.tid, tid=task.tid, comm=task.comm, syscall=task.syscall or "", args=task.args,
        ret=0, errno="", decoded=task.decoded,
    )  # fmt: skip
    return calls.text(call)


def _since(task: Task) -> str:
    if task.seconds is None:
        return ""
    minutes, hours, days = task.seconds // 60, task.seconds // 3600, task.seconds // 86400
    for number, unit in ((days, "day"), (hours, "hour"), (minutes, "minute")):
        if number:
            return f", for {words.count(number, unit)}"
    return f", for {words.count(task.seconds, 'second')}"


def _stacks(page: Page, verdict: Verdict, tasks: dict[int, Task]) -> None:
    """The stacks of those that matter most: the cycles' first, then the owners, then the rest."""
    order = [tid for root in verdict.roots for tid in (*root.tids, *root.waiting[:2])]
    chosen = [tasks[tid] for tid in dict.fromkeys(order) if tid in tasks and tasks[tid].stack]
    for task in chosen[:_STACKS]:
        page.heading(f"{task.tid} {task.comm}", f" ({task.state}{_since(task)})")
        stack(page, task)
    if len(chosen) > _STACKS:
        left = words.count(len(chosen) - _STACKS, "more stack")
        page.heading(f"and {left}", "; --json has them all")


def stack(page: Page, task: Task) -> None:
    """The system call that a task is in, and its frames with what each was called with."""
    if task.syscall:
        page.write((f"in {_call(task)}", ""), indent=2, hang=4)
    for frame in task.stack:
        _frame(page, frame)
    for user in task.user:
        mark = "? " if user.guessed else ""
        name = f"{user.function}()+{user.offset}" if user.function else f"+{user.offset}"
        page.raw((f"  user: {mark}{name}", ""), (f"  {user.object}".rstrip(), "dim"))


def _frame(page: Page, frame: Frame) -> None:
    mark = "? " if frame.guessed else ""
    where = words.place(frame.file, frame.line) or (f"[{frame.module}]" if frame.module else "")
    page.raw(
        (f"  {mark}{frame.function}()+{frame.offset}", ""),
        (f"  {where}" if where else "", "dim"),
    )
    for argument in frame.args:
        if argument.value:
            verb = "is now" if argument.now else "="
            shown = f"      {argument.name} {verb} {argument.value}"
            page.raw((shown, ""), (f"  ({argument.source})", "dim"))


def _sure(page: Page, verdict: Verdict) -> None:
    page.heading("how sure:", f" {verdict.confidence}, {_SURE[verdict.confidence]}")
    context.add_ground(page, verdict.kernel, verdict.evidence)
