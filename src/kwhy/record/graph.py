"""Call trees from function_graph events, in the same shape as those from the function tracer.

function_graph says entry and exit with a depth, so nothing has to be deduced; but it does not say
from where in the caller a function was called, except with ``funcgraph-retaddr`` (6.14, commit
21e92806d39c, "function_graph: Support recording and printing the return address of function").
"""

from collections.abc import Mapping

import numpy as np

from kwhy.record.calls import Tree, context_level
from kwhy.record.formats import Format, columns
from kwhy.record.model import Call
from kwhy.record.names import Functions
from kwhy.record.pages import I64, Events


def graph_tree(
    events: Events, formats: Mapping[str, Format], rows: I64, functions: Functions
) -> Tree:
    """The tree of the function_graph events among `rows` (one task, in order of time)."""
    tree = Tree()
    entries = [formats[n] for n in ("funcgraph_entry", "funcgraph_retaddr_entry") if n in formats]
    leave = formats.get("funcgraph_exit")
    if not entries:
        return tree
    steps: list[tuple[int, Format, bool]] = []
    types = events.type[rows]
    for fmt in [*entries, *([leave] if leave else [])]:
        for row in rows[(types == fmt.id) & (events.size[rows] >= fmt.size)].tolist():
            steps.append((row, fmt, fmt is leave))
    position = {int(row): i for i, row in enumerate(rows)}
    steps.sort(key=lambda step: position[step[0]])
    stack: list[tuple[Call, int, bool]] = []  # call, depth, inside an interrupt
    for row, fmt, is_exit in steps:
        values = columns(events, fmt, np.array([row]))[0]
        start = functions.at(int(values["func"])).start
        depth = int(values["depth"])
        time = int(events.time[row])
        while stack and stack[-1][1] > depth:
            stack.pop()
        if is_exit:
            if stack and stack[-1][1] == depth and stack[-1][0].function == start:
                call = stack.pop()[0]
                call.duration = max(_length(values, time - call.time), 0)
            continue
        if stack and stack[-1][1] == depth:
            stack.pop()  # its exit was lost
        site = int(values["retaddr"]) if "retaddr" in (values.dtype.names or ()) else None
        _push(tree, stack, Call(start, site, time), depth, int(events.flags[row]), functions)
    return tree


def _length(values: np.void, otherwise: int) -> int:
    """Duration in ns: from the event where it says so, else between the two events."""
    names = values.dtype.names or ()
    if "rettime" in names and "calltime" in names:
        return int(values["rettime"]) - int(values["calltime"])
    return otherwise


def _push(
    tree: Tree,
    stack: list[tuple[Call, int, bool]],
    call: Call,
    depth: int,
    flags: int,
    functions: Functions,
) -> None:
    function = functions.at(call.function)
    inside = stack[-1][2] if stack else False
    foreign = inside or function.entry or function.softirq or context_level(flags) > 0
    if foreign and not inside:
        call.kind = "interrupt"
        tree.interrupts.append(call)
    elif stack:
        stack[-1][0].children.append(call)
    else:
        tree.calls.append(call)
    stack.append((call, depth, foreign))
