"""The graph of who waits for whom: its cycles, and where its chains end.

Nodes are task addresses. An edge is a proven wait: for a task that owns the lock (or stands before
in its queue and has to go first), or for any of several tasks that could end it. Who waits for an
owner that is stuck is stuck; who waits for any of several is stuck only when all of them are. A
deadlock is a strongly connected component of stuck tasks; a queue behind an owner that can still
run is none.

Thousands of tasks may wait for any of the same thousands: each such set is one node more, whose
number is negative, so that the graph is as large as what it was made from. No step takes longer
than the graph is large.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx

from kwhy.diagnose.hang.claims import Claim

MAX_FAR = 8
"""Of those who could end a wait, so many are told of."""

FEW = 8
"""Larger sets of tasks that are waited for have a node of their own."""

Parts = tuple[Sequence[int], ...]


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

    def reached(self, tasks: Iterable[int]) -> set[int]:
        """``tasks`` and all that they may wait for, directly or not."""
        found = set(tasks)
        queue = list(found)
        while queue:
            here = queue.pop()
            for other in self.graph.successors(here) if here in self.graph else ():
                if other not in found:
                    found.add(other)
                    queue.append(other)
        return {node for node in found if node > 0}


class _Graph:
    """Edges from tasks to tasks, or to sets of them. ``others`` live as long as the graph."""

    def __init__(self) -> None:
        self.edges: nx.DiGraph[int] = nx.DiGraph()
        self._sets: dict[int, int] = {}

    def link(self, task: int, others: Sequence[int]) -> None:
        """``task`` waits for ``others``."""
        if len(others) <= FEW:
            self.edges.add_edges_from((task, other) for other in others)
            return
        if id(others) not in self._sets:
            self._sets[id(others)] = -1 - len(self._sets)
            self.edges.add_edges_from((self._sets[id(others)], other) for other in others)
        self.edges.add_edge(task, self._sets[id(others)])


def build(claims: Mapping[int, Claim], asked: Iterable[int]) -> Waits:
    """The cycles of all ``claims``, and the ends of the chains that begin at ``asked``."""
    stuck = _stuck(claims, lambda claim: (claim.owners, claim.behind))
    maybe = _stuck(claims, lambda claim: (claim.owners, claim.behind, claim.candidates))
    proven, likely, following, everything = _Graph(), _Graph(), _Graph(), _Graph()
    for task, claim in claims.items():
        all_of = claim.any_of if claim.complete else ()
        for others in (claim.owners, claim.behind, all_of) if task in stuck else ():
            proven.link(task, others)
        for others in (
            (claim.owners, claim.behind, claim.candidates, all_of) if task in maybe else ()
        ):
            likely.link(task, others)
        only = claim.any_of if len(claim.any_of) == 1 else ()
        for others in (claim.owners, claim.behind, all_of if task in stuck else only):
            following.link(task, others)
        for others in (claim.owners, claim.behind, claim.candidates):
            everything.link(task, others)
        everything.edges.add_edges_from((task, other) for other in claim.any_of[:MAX_FAR])
    cycles = _cycles(proven.edges)
    inside = {task: number for number, cycle in enumerate(cycles) for task in cycle}
    possible = tuple(c for c in _cycles(likely.edges) if not set(c) <= inside.keys())
    nearest = _ends(following.edges, inside)
    ends = {task: nearest.get(task, task) for task in asked}
    return Waits(cycles, possible, ends, everything.edges, inside)


def _stuck(claims: Mapping[int, Claim], held_by: Callable[[Claim], Parts]) -> set[int]:
    """Tasks that cannot go on, ever: begin with all, and free who waits for somebody free."""
    stuck = {task for task, claim in claims.items() if not claim.timed}
    members: dict[int, set[int]] = {}
    within: dict[int, list[int]] = {}
    users: dict[int, list[int]] = {}
    for task, claim in claims.items():
        for others in (*held_by(claim), claim.any_of):
            if others and id(others) not in members:
                members[id(others)] = set(others)
                for other in members[id(others)]:
                    within.setdefault(other, []).append(id(others))
            users.setdefault(id(others), []).append(task)
    left = {which: len(tasks & stuck) for which, tasks in members.items()}

    def held(task: int) -> bool:
        claim = claims[task]
        far = id(claim.any_of) if claim.complete and claim.any_of else None
        if far is not None and left[far] == len(members[far]):
            return True
        return any(left[id(others)] for others in held_by(claim) if others)

    queue = list(stuck)
    while queue:
        task = queue.pop()
        if task not in stuck or held(task):
            continue
        stuck.discard(task)
        for which in within.get(task, ()):
            left[which] -= 1
            if left[which] in (0, len(members[which]) - 1):
                queue += users[which]
    return stuck


def _cycles(graph: "nx.DiGraph[int]") -> tuple[tuple[int, ...], ...]:
    """One cycle of each strongly connected component."""
    found: list[tuple[int, ...]] = []
    for component in nx.strongly_connected_components(graph):
        (first, *more) = component
        if not more and not graph.has_edge(first, first):
            continue
        source = min(node for node in component if node > 0)
        edges = nx.find_cycle(graph.subgraph(component), source=source)
        found.append(tuple(edge[0] for edge in edges if edge[0] > 0))
    return tuple(sorted(found))


def _ends(graph: "nx.DiGraph[int]", inside: Iterable[int]) -> dict[int, int]:
    """For each node the nearest task of a cycle, else the nearest that waits for nobody.

    Waits that end by themselves can go round, too: there it is one of that round.
    """
    ends = _nearest(graph, (task for task in inside if task in graph), {})
    ends |= _nearest(graph, (node for node in graph if not graph.out_degree(node)), ends)
    left = graph.subgraph(node for node in graph if node not in ends)
    rounds = nx.strongly_connected_components(left)
    last = (c for c in rounds if all(o in c for node in c for o in graph.successors(node)))
    return ends | _nearest(graph, (min(t for t in c if t > 0) for c in last), ends)


def _nearest(
    graph: "nx.DiGraph[int]", sources: Iterable[int], known: Mapping[int, int]
) -> dict[int, int]:
    """For each node that reaches one of ``sources`` and is not ``known`` the nearest of those."""
    steps = {source: 0 for source in sources if source not in known}
    ends = {source: source for source in steps}
    queue = deque(steps)
    while queue:
        here = queue.popleft()
        if here not in ends:
            # Of several that are as near the first in the order of the edges.
            nearer = (o for o in graph.successors(here) if steps.get(o) == steps[here] - 1)
            ends[here] = ends[next(nearer)]
        for other in graph.predecessors(here):
            if other not in steps and other not in known:
                steps[other] = steps[here] + 1
                queue.append(other)
    return ends
