"""The shortest way into a bad state: breadth-first over real kernel code, in several processes.

Level by level, so that the first sequence that is found is a shortest one, and a level that was
searched whole proves that there is none of that length.
"""

import multiprocessing
import random
import signal
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field

from kwhy.emulate.memory import State
from kwhy.emulate.model import Model
from kwhy.emulate.world import Stopped, World

CHUNK = 16  # states that are handed to a process at a time
MAX_STATES = 200_000

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """A state after one more step: what counts of it, and whether (why) it is a bad one."""

    path: Path
    key: Hashable
    bad: str | None
    state: State


@dataclass(slots=True)
class Progress:
    """How far a search is. ``levels``: new states by depth; ``stopped``: reasons with counts."""

    states: int = 1
    transitions: int = 0
    levels: list[int] = field(default_factory=lambda: [1])
    stopped: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Transitions per second."""
        return self.transitions / self.seconds if self.seconds else 0.0


@dataclass(slots=True)
class Outcome:
    """``path`` None: no bad state. ``exhausted``: there are no more states than were seen;
    ``complete``: every sequence up to ``depth`` steps was tried."""

    path: Path | None
    why: str
    depth: int
    exhausted: bool
    complete: bool
    progress: Progress


_model: Model
_world: World
_seen: set[Hashable]


def _expand(batch: list[tuple[Path, State]]) -> tuple[list[Found], int, dict[str, int]]:
    """All next states of some, those that this process has seen before left out."""
    found: list[Found] = []
    stopped: dict[str, int] = {}
    count = 0
    for path, state in batch:
        for operation in _model.operations:
            count += 1
            _world.load(state)
            try:
                _model.step(operation, _world)
                after = _world.save()
                key = _model.state(_world)
                if key in _seen:
                    continue
                _seen.add(key)
                bad = _model.bad(_world)
            except Stopped as error:
                stopped[str(error)] = stopped.get(str(error), 0) + 1
                continue
            found.append(Found((*path, operation), key, bad, after))
    return found, count, stopped


def search(
    model: Model,
    world: World,
    *,
    depth: int,
    jobs: int = 1,
    tell: Callable[[Progress], None] = lambda progress: None,
) -> Outcome:
    """Search breadth-first. ``model.prepare`` must have run on ``world``."""
    global _model, _world, _seen
    _model, _world = model, world
    begun = time.monotonic()
    world.load(b"")
    first = model.state(world)
    why = model.bad(world)
    progress = Progress()
    if why:
        return Outcome((), why, 0, False, True, progress)
    _seen = {first}
    seen = {first}
    frontier: list[tuple[Path, State]] = [((), b"")]
    with _workers(jobs) as expand:
        for level in range(1, depth + 1):
            batches = [frontier[i : i + CHUNK] for i in range(0, len(frontier), CHUNK)]
            frontier = []
            bad: list[Found] = []
            for found, count, stopped in expand(batches):
                progress.transitions += count
                for reason, times in stopped.items():
                    progress.stopped[reason] = progress.stopped.get(reason, 0) + times
                for each in found:
                    if each.key in seen:
                        continue
                    seen.add(each.key)
                    frontier.append((each.path, each.state))
                    if each.bad:
                        bad.append(each)
                progress.states = len(seen)
                progress.seconds = time.monotonic() - begun
                tell(progress)
            progress.levels.append(len(frontier))
            if bad:
                first_bad = min(bad, key=lambda each: each.path)
                return Outcome(first_bad.path, first_bad.bad or "", level, False, True, progress)
            if not frontier:
                return Outcome(None, "", level, True, True, progress)
            if len(seen) > MAX_STATES:
                return Outcome(None, "", level, False, False, progress)
    return Outcome(None, "", depth, False, True, progress)


def _quiet() -> None:
    """In a worker: Ctrl-C is for the parent, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _workers:
    """A way to expand batches: here, or in processes that are copies of this one."""

    def __init__(self, jobs: int) -> None:
        fork = multiprocessing.get_context("fork")
        self.pool = fork.Pool(jobs, _quiet) if jobs > 1 else None

    def __enter__(
        self,
    ) -> Callable[
        [list[list[tuple[Path, State]]]], Iterator[tuple[list[Found], int, dict[str, int]]]
    ]:
        pool = self.pool
        if pool is None:
            return lambda batches: map(_expand, batches)
        return lambda batches: pool.imap_unordered(_expand, batches)

    def __exit__(self, *_error: object) -> None:
        if self.pool is not None:
            self.pool.terminate()


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


def replay(model: Model, world: World, path: Path) -> list[list[str]]:
    """The state in words at the beginning and after each step."""
    world.load(b"")
    out = [list(model.show(world))]
    for operation in path:
        model.step(operation, world)
        out.append(list(model.show(world)))
    return out
