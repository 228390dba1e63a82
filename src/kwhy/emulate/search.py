"""The shortest way into a bad state: breadth-first over real kernel code, in several processes.

Level by level, so that the first sequence that is found is a shortest one, and a level that was
searched whole proves that there is none of that length. States are taken up in the same order
whatever the number of processes, so that each search tells the same.
"""

import multiprocessing
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from kwhy.emulate.checkpoint import Checkpoint, Progress, Steps, digest
from kwhy.emulate.ground import Unfetched
from kwhy.emulate.memory import State
from kwhy.emulate.model import Model, patience
from kwhy.emulate.shared import Shared
from kwhy.emulate.world import Stopped, World
from kwhy.errors import KwhyError

LEAST, MOST = 16, 128  # states that are handed to a process at a time
ALONE = 128
"""As many states are expanded here: handing them out would take longer."""
MAX_STATES = 1_000_000

Todo = tuple[Steps, State]
"""How a state was reached, and what it changed."""

Found = tuple[int, str, bytes, str | None, State]
"""A new state: of which state of a batch and by which operation it came, what stands for it,
whether (why) it is a bad one, and what it changed."""

Expanded = tuple[list[Found], int, dict[str, int], list[int]]
"""What became of a batch: new states, transitions, reasons to stop with counts, and which of its
states could only be expanded where pages can be fetched."""


@dataclass(slots=True)
class Outcome:
    """``path`` None: no bad state. ``exhausted``: the steps that can be executed lead to no more
    states than were seen; ``complete``: every sequence up to ``depth`` steps was tried."""

    path: Steps | None
    why: str
    depth: int
    exhausted: bool
    complete: bool
    progress: Progress


def search(
    model: Model,
    world: World,
    *,
    depth: int,
    jobs: int = 1,
    tell: Callable[[Progress], None] = lambda progress: None,
    start: Checkpoint | None = None,
    keep: Callable[[Checkpoint], None] = lambda point: None,
) -> Outcome:
    """Search breadth-first. ``model.prepare`` must have run on ``world``.

    ``start`` goes on from an earlier search; ``keep`` is given where this one is, at the end of
    each level and when it is interrupted.
    """
    point = start
    if point is None:
        world.load(b"")
        with patience():
            first, why = model.state(world), model.bad(world)
        if why:
            return Outcome((), why, 0, False, True, Progress())
        point = Checkpoint(seen={digest(first)}, todo=[((), b"")])
    with _Expander(model, world, jobs) as expander:
        try:
            return _levels(point, expander, depth, tell, keep)
        except KeyboardInterrupt:
            keep(point)
            raise


def _levels(
    point: Checkpoint,
    expander: "_Expander",
    depth: int,
    tell: Callable[[Progress], None],
    keep: Callable[[Checkpoint], None],
) -> Outcome:
    progress = point.progress
    begun = time.monotonic() - progress.seconds
    while point.level <= depth:
        todo = point.todo
        batches = list(_batches(todo, expander.jobs))
        done = 0
        for batch, expanded in zip(batches, expander.expand(batches, point.seen), strict=True):
            _take(point, batch, expanded)
            done += len(batch)
            point.todo = todo[done:]
            progress.states, progress.left = len(point.seen), len(point.todo)
            progress.seconds = time.monotonic() - begun
            tell(progress)
        progress.levels.append(len(point.after))
        level, bad = point.level, point.bad
        point.level, point.todo, point.after, point.bad = level + 1, point.after, [], []
        if bad:
            path, why = min(bad)
            return Outcome(path, why, level, False, True, progress)
        if not point.todo:
            some = progress.transitions > sum(progress.stopped.values())
            return Outcome(None, "", level, some, True, progress)
        keep(point)
        if len(point.seen) > MAX_STATES:
            return Outcome(None, "", level, False, False, progress)
    return Outcome(None, "", depth, False, True, progress)


def _batches(todo: list[Todo], jobs: int) -> Iterator[list[Todo]]:
    """Large ones first, for each costs something; small ones last, so that none is waited for."""
    at = 0
    while at < len(todo):
        size = max(LEAST, min(MOST, (len(todo) - at) // (2 * jobs)))
        yield todo[at : at + size]
        at += size


def _take(point: Checkpoint, batch: list[Todo], expanded: Expanded) -> None:
    found, count, stopped, _ = expanded
    point.progress.transitions += count
    _add(point.progress.stopped, stopped)
    for at, operation, key, bad, state in found:
        if key not in point.seen:
            point.seen.add(key)
            path = (*batch[at][0], operation)
            point.after.append((path, state))
            if bad:
                point.bad.append((path, bad))


def _add(counts: dict[str, int], more: dict[str, int]) -> None:
    for reason, times in more.items():
        counts[reason] = counts.get(reason, 0) + times


# -- expanding, here and elsewhere -----------------------------------------------------------------


def _expand(
    model: Model,
    world: World,
    states: list[State],
    seen: set[bytes],
    found_elsewhere: Callable[[bytes], bool] = lambda key: False,
) -> Expanded:
    """All next states of some, but for those in ``seen`` or found elsewhere."""
    found: list[Found] = []
    stopped: dict[str, int] = {}
    undone: list[int] = []
    new: set[bytes] = set()
    with patience():
        for at, state in enumerate(states):
            before = len(found)
            reasons: dict[str, int] = {}
            try:
                for operation in model.operations:
                    try:
                        world.load(state)
                        model.step(operation, world)
                        key = world.recall()
                        after = None if key else world.save()
                        key = key or world.remember(lambda: digest(model.state(world)))
                        if key in seen or key in new or found_elsewhere(key):
                            continue
                        after = after or world.save()
                        found.append((at, operation, key, model.bad(world), after))
                        new.add(key)
                    except Stopped as error:
                        _add(reasons, {str(error): 1})
            except Unfetched:
                new -= {key for _, _, key, _, _ in found[before:]}
                del found[before:]
                undone.append(at)
                continue
            _add(stopped, reasons)
    return found, len(model.operations) * (len(states) - len(undone)), stopped, undone


_model: Model
_world: World
_seen: set[bytes]
_shared: Shared


def _elsewhere(number: int, states: list[State]) -> Expanded:
    """A batch in a process that is a copy of the searching one."""
    told = _shared.hear()
    out = _expand(_model, _world, states, _seen, lambda key: told.get(key, number) < number)
    _shared.add((found[2] for found in out[0]), number)
    return out


def _begin() -> None:
    """In a new process: Ctrl-C is for the parent, which ends its workers, and so is fetching."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _world.seal()


class _Expander:
    """Expands batches: here, or in ``jobs`` processes that are copies of this one.

    A page that is first touched in one of these is fetched here, and they are begun anew.
    """

    def __init__(self, model: Model, world: World, jobs: int) -> None:
        self._model, self._world, self.jobs = model, world, jobs
        self._context = multiprocessing.get_context("fork")
        self._pool: ProcessPoolExecutor | None = None
        self._stale = False
        self._shared = Shared() if jobs > 1 else None
        self._number = 0

    def __enter__(self) -> "_Expander":
        return self

    def __exit__(self, *_error: object) -> None:
        self._end()

    def _end(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def expand(
        self, batches: list[list[Todo]], seen: set[bytes]
    ) -> Iterator[Expanded]:
        """Batch by batch, in their order."""
        states = [[state for _, state in batch] for batch in batches]
        if self.jobs == 1 or sum(map(len, states)) < ALONE:
            for batch in states:
                yield _expand(self._model, self._world, batch, seen)
            return
        numbers = range(self._number + 1, self._number + 1 + len(states))
        self._number += len(states)
        answers = self._workers(seen).map(_elsewhere, numbers, states)
        try:
            for batch, expanded in zip(states, answers, strict=True):
                yield self._completed(batch, expanded, seen) if expanded[3] else expanded
        except BrokenProcessPool:
            why = "a process of the search has died: is there memory for --jobs of this number?"
            raise KwhyError(why) from None

    def _completed(self, states: list[State], expanded: Expanded, seen: set[bytes]) -> Expanded:
        """With what could not be done in another process."""
        self._stale = True
        found, count, stopped, undone = expanded
        more, further, reasons, _ = _expand(
            self._model, self._world, [states[at] for at in undone], seen
        )
        _add(stopped, reasons)
        found += [(undone[at], step, key, bad, state) for at, step, key, bad, state in more]
        return found, count + further, stopped, []

    def _workers(self, seen: set[bytes]) -> ProcessPoolExecutor:
        global _model, _world, _seen, _shared
        if self._stale:
            self._end()
        if self._pool is None:
            assert self._shared is not None
            _model, _world, _seen, _shared = self._model, self._world, seen, self._shared
            self._pool = ProcessPoolExecutor(self.jobs, self._context, _begin)
            self._stale = False
        return self._pool


# -- other ways ------------------------------------------------------------------------------------


def wander(model: Model, world: World, *, steps: int, depth: int, seed: int = 0) -> Outcome:
    """Random walks of at most ``depth`` steps; what is found need not be the shortest."""
    chance = random.Random(seed)
    begun = time.monotonic()
    progress = Progress()
    path: list[str] = []
    world.load(b"")
    for _ in range(steps):
        if len(path) >= depth:
            path = []
            world.load(b"")
        operation = chance.choice(model.operations)
        progress.transitions += 1
        progress.seconds = time.monotonic() - begun
        try:
            model.step(operation, world)
            path.append(operation)
            why = model.bad(world)
        except Stopped as error:
            progress.stopped[str(error)] = progress.stopped.get(str(error), 0) + 1
            path = []
            world.load(b"")
            continue
        if why:
            return Outcome(tuple(path), why, len(path), False, False, progress)
    return Outcome(None, "", depth, False, False, progress)


def replay(model: Model, world: World, path: Steps) -> list[list[str]]:
    """The state in words at the beginning and after each step."""
    world.load(b"")
    out = [list(model.show(world))]
    for operation in path:
        model.step(operation, world)
        out.append(list(model.show(world)))
    return out
