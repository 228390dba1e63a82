"""The graph of who waits for whom: its cycles, and where its chains end.

Nodes are task addresses. An edge is a proven wait: for a task that owns the lock (or stands before
in its queue and has to go first), or for any of several tasks that could end it. Who waits for an
owner that is stuck is stuck; who waits for any of several is stuck only when all of them are. A
deadlock is a strongly connected component of stuck tasks; a queue behind an owner that can still
run is none.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx

from kwhy.diagnose.hang.claims import Claim

MAX_FAR = 8
"""Of those who could end a wait, so many are told of."""


@dataclass(frozen=True, slots=True)
class Waits:
    """``cycles`` are proven, ``possible`` hold if a likely holder is the real one.

    ``ends`` maps each asked task to where its chain ends: the tasks of a cycle, an owner that
    waits for nobody, or itself.
    """

    cycles: tuple[tuple[int, ...], ...]
    possible: tuple[tuple[int, ...], ...]
    ends: Mapping[int, int] = field(default_factory=dict)
    graph: "nx.DiGraph[int]" = field(default_factory=nx.DiGraph)
    cycle_of: Mapping[int, int] = field(default_factory=dict)
    """The index of the proven cycle that a task is part of."""


def build(claims: Mapping[int, Claim], asked: Iterable[int]) -> Waits:
    """The cycles of all ``claims``, and the ends of the chains that begin at ``asked``."""
    stuck = _stuck(claims, lambda claim: claim.owners)
    maybe = _stuck(claims, lambda claim: (*claim.owners, *claim.candidates))
    proven: nx.DiGraph[int] = nx.DiGraph()
    likely: nx.DiGraph[int] = nx.DiGraph()
    following: nx.DiGraph[int] = nx.DiGraph()
    for task, claim in claims.items():
        held = (*claim.owners, *claim.behind)
        all_of = claim.any_of if claim.complete else ()
        proven.add_edges_from((task, o) for o in (*held, *all_of) if {task, o} <= stuck)
        likely.add_edges_from(
            (task, o) for o in (*held, *claim.candidates, *all_of) if {task, o} <= maybe
        )
        only = claim.any_of if len(claim.any_of) == 1 else ()
        following.add_edges_from((task, o) for o in (*held, *(all_of if task in stuck else only)))
    cycles = _cycles(proven)
    inside = {task: number for number, cycle in enumerate(cycles) for task in cycle}
    possible = tuple(c for c in _cycles(likely) if not set(c) <= inside.keys())
    ends = {task: _end(following, task, inside) for task in asked}
    return Waits(cycles, possible, ends, _all(claims), inside)


def _all(claims: Mapping[int, Claim]) -> "nx.DiGraph[int]":
    """Every task beside all that it may wait for."""
    graph: nx.DiGraph[int] = nx.DiGraph()
    for task, claim in claims.items():
        others = (*claim.owners, *claim.behind, *claim.candidates, *claim.any_of[:MAX_FAR])
        graph.add_edges_from((task, other) for other in others)
    return graph


def _stuck(claims: Mapping[int, Claim], held_by: Callable[[Claim], Sequence[int]]) -> set[int]:
    """Tasks that cannot go on, ever: begin with all, and free who waits for somebody free."""
    stuck = {task for task, claim in claims.items() if not claim.timed}
    waiting: dict[int, list[int]] = {}
    for task, claim in claims.items():
        for other in (*held_by(claim), *claim.behind, *claim.any_of):
            waiting.setdefault(other, []).append(task)
    queue = list(stuck)
    while queue:
        task = queue.pop()
        if task not in stuck:
            continue
        claim = claims[task]
        need = (*held_by(claim), *claim.behind)
        far = claim.any_of if claim.complete else ()
        if not any(o in stuck for o in need) and not (far and all(o in stuck for o in far)):
            stuck.discard(task)
            queue += waiting.get(task, ())
    return stuck


def _cycles(graph: "nx.DiGraph[int]") -> tuple[tuple[int, ...], ...]:
    """One cycle of each strongly connected component."""
    found: list[tuple[int, ...]] = []
    for component in nx.strongly_connected_components(graph):
        if len(component) == 1:
            (only,) = component
            if graph.has_edge(only, only):
                found.append((only,))
            continue
        edges = nx.find_cycle(graph.subgraph(component), source=min(component))
        found.append(tuple(edge[0] for edge in edges))
    return tuple(sorted(found))


def _end(graph: "nx.DiGraph[int]", task: int, inside: Mapping[int, int]) -> int:
    """Breadth first: the nearest task of a cycle, else the nearest that waits for nobody."""
    seen, queue, last = {task}, deque([task]), task
    final = None
    while queue:
        here = queue.popleft()
        if here in inside:
            return here
        following = list(graph.successors(here)) if here in graph else []
        if not following and final is None:
            final = here
        for other in following:
            if other not in seen:
                seen.add(other)
                queue.append(other)
        last = here
    return last if final is None else final
