"""Who waits for whom as a picture: tasks and waits as nodes, in the language of Graphviz."""

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import graphviz

from kwhy.errors import UsageError
from kwhy.report.hang import MAX_NAMED, listed, lock, who
from kwhy.report.page import clean
from kwhy.report.words import count
from kwhy.verdict.hang import KINDS, Task, Verdict, Wait

_PROGRAM: Final = "dot"
_PROVEN: Final = {"color": "red", "penwidth": "2"}
_POSSIBLE: Final = {"color": "orange", "penwidth": "2"}
_ENDS: Final = {
    "gone": "its owner has ended",
    "running": "is running",
    "ready": "is ready to run",
    "asleep": "sleeps",
}


def check(path: Path) -> None:
    """Raises UsageError when a file of that name cannot be made: an SVG without the program."""
    if path.suffix == ".svg" and shutil.which(_PROGRAM) is None:
        raise UsageError(
            f"cannot draw {path}: the program {_PROGRAM!r} is not installed; "
            "install Graphviz, or give a name that ends in .dot"
        )


def write(verdict: Verdict, path: Path) -> None:
    """Write DOT, or for a name in ``.svg`` what the ``dot`` program draws; raises UsageError."""
    check(path)
    graph = draw(verdict)
    try:
        if path.suffix == ".svg":
            path.write_bytes(graph.pipe(format="svg", engine=_PROGRAM, quiet=True))
        else:
            path.write_text(graph.source, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        raise UsageError(
            f"cannot draw {path}: {_PROGRAM} failed with status {error.returncode}; "
            "give a name that ends in .dot"
        ) from error


def draw(verdict: Verdict) -> graphviz.Digraph:
    """Every wait is a box, with arrows from its waiters and to those who hold or could end it.

    A task has a node of its own if it holds something or is part of a cycle; the others that wait
    for the same are one node, however many they are.
    """
    graph = graphviz.Digraph("hang", graph_attr={"rankdir": "LR", "label": _text(verdict.summary)})
    graph.attr("node", fontname="sans-serif")
    graph.attr("edge", fontname="sans-serif", fontsize="10")
    tasks = {task.tid: task for task in verdict.tasks}
    wait_of = {tid: wait for wait in verdict.waits for tid in wait.waiters}
    marks, closing = _cycles(verdict, wait_of)
    node_of = _tasks(graph, verdict, tasks, wait_of, marks)
    for wait in verdict.waits:
        _wait(graph, wait, marks)
        _waiters(graph, wait, node_of, marks)
        _holders(graph, wait, tasks, node_of, closing.get(wait.id, {}))
    return graph


def _cycles(
    verdict: Verdict, wait_of: dict[int, Wait]
) -> tuple[dict[str, dict[str, str]], dict[int, dict[int, dict[str, str]]]]:
    """How nodes are painted, and for each wait the tasks that close a cycle through it."""
    marks: dict[str, dict[str, str]] = {}
    closing: dict[int, dict[int, dict[str, str]]] = {}
    for rings, paint in ((verdict.possible, _POSSIBLE), (verdict.cycles, _PROVEN)):
        for ring in rings:
            for tid, following in zip(ring, (*ring[1:], ring[0]), strict=True):
                marks[_task_id(tid)] = paint
                if tid in wait_of:
                    marks[_wait_id(wait_of[tid])] = paint
                    closing.setdefault(wait_of[tid].id, {})[following] = paint
    return marks, closing


def _tasks(
    graph: graphviz.Digraph,
    verdict: Verdict,
    tasks: dict[int, Task],
    wait_of: dict[int, Wait],
    marks: dict[str, dict[str, str]],
) -> dict[int, str]:
    """Add the tasks' nodes; the result is each task's node."""
    own = [tid for ring in (*verdict.cycles, *verdict.possible) for tid in ring]
    own += [tid for wait in verdict.waits for tid in wait.owners]
    ends = {root.tids[0]: _ENDS[root.kind] for root in verdict.roots
            if root.kind in _ENDS and root.tids}  # fmt: skip
    own += ends
    for wait in verdict.waits:
        far = [tid for tid in (*wait.candidates, *wait.any_of) if tid not in wait_of]
        own += far if len(far) <= MAX_NAMED else ()
    node_of = {tid: _task_id(tid) for tid in own}
    for tid, node in node_of.items():
        lines = [who(tid, tasks)]
        if tid in tasks:
            lines.append(" ".join(filter(None, (tasks[tid].state, tasks[tid].syscall))))
        lines += [ends[tid]] if tid in ends else []
        graph.node(node, _text(*lines), shape="ellipse", **marks.get(node, {}))
    for wait in verdict.waits:
        _crowd(graph, f"waiters{wait.id}", wait.waiters, tasks, node_of)
    for wait in verdict.waits:
        _crowd(graph, f"others{wait.id}", (*wait.candidates, *wait.any_of), tasks, node_of)
    return node_of


def _crowd(
    graph: graphviz.Digraph,
    node: str,
    tids: Iterable[int],
    tasks: dict[int, Task],
    node_of: dict[int, str],
) -> None:
    """One node for all of ``tids`` that have none yet."""
    members = [tid for tid in dict.fromkeys(tids) if tid not in node_of]
    if not members:
        return
    many = f"{count(len(members), 'task')}: " if len(members) > 1 else ""
    graph.node(node, _text(many + listed(members, tasks)), shape="ellipse")
    node_of.update(dict.fromkeys(members, node))


def _wait(graph: graphviz.Digraph, wait: Wait, marks: dict[str, dict[str, str]]) -> None:
    lines = [lock(wait)]
    if not wait.owners and not wait.any_of:
        lines.append(wait.note or KINDS.get(wait.kind, ""))
    node = _wait_id(wait)
    graph.node(node, _text(*lines), shape="box", **marks.get(node, {}))


def _waiters(
    graph: graphviz.Digraph, wait: Wait, node_of: dict[int, str], marks: dict[str, dict[str, str]]
) -> None:
    for node in dict.fromkeys(node_of[tid] for tid in wait.waiters):
        graph.edge(node, _wait_id(wait), **marks.get(node, {}))


def _holders(
    graph: graphviz.Digraph,
    wait: Wait,
    tasks: dict[int, Task],
    node_of: dict[int, str],
    closing: dict[int, dict[str, str]],
) -> None:
    """Arrows to who holds it or can end it; those that close a cycle first, and once."""
    drawn = set[str]()
    whose = dict.fromkeys(wait.owners, "held by")
    for tids, words in ((wait.candidates, "perhaps held by"), (wait.any_of, "to be ended by")):
        for tid in tids:
            whose.setdefault(tid, words)
    for tid, paint in closing.items():
        process = tasks[tid].pid if tid in tasks else None
        words = whose.get(tid) or (whose.pop(process, "") if process is not None else "")
        graph.edge(_wait_id(wait), node_of[tid], words or "queued behind", **paint)
        drawn.add(node_of[tid])
    for tid, words in whose.items():
        if node_of[tid] not in drawn:
            style = "solid" if words == "held by" else "dashed"
            graph.edge(_wait_id(wait), node_of[tid], words, style=style)
            drawn.add(node_of[tid])


def _task_id(tid: int) -> str:
    return f"task{tid}"


def _wait_id(wait: Wait) -> str:
    return f"wait{wait.id}"


def _text(*lines: str) -> str:
    """Foreign text as a label, a line each; never taken for HTML, whatever it begins with."""
    escaped = (graphviz.escape(clean(line)) for line in lines if line)
    label: str = graphviz.nohtml("\\n".join(escaped))
    return label
