"""The graph of who waits for whom: its cycles, and where its chains end.

Nodes are task addresses. An edge is a proven wait for a task that owns the lock (or stands before
in its queue and has to go first). A deadlock is a strongly connected component; a queue behind an
owner that can still run is none.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import networkx as nx

from kwhy.diagnose.hang.claims import Claim


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
    proven: nx.DiGraph[int] = nx.DiGraph()
    likely: nx.DiGraph[int] = nx.DiGraph()
    for task, claim in claims.items():
        for other in (*claim.owners, *claim.behind):
            proven.add_edge(task, other)
        for other in (*claim.owners, *claim.behind, *claim.candidates):
            likely.add_edge(task, other)
    cycles = _cycles(proven)
    inside = {task: number for number, cycle in enumerate(cycles) for task in cycle}
    possible = tuple(c for c in _cycles(likely) if not set(c) <= inside.keys())
    ends = {task: _end(proven, task, inside) for task in asked}
    return Waits(cycles, possible, ends, likely, inside)


def _cycles(graph: "nx.DiGraph[int]") -> tuple[tuple[int, ...], ...]:
    """One cycle of each strongly connected component."""
    found = []
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
