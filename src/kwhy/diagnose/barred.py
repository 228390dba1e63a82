"""A system call that a seccomp filter answered: its own function was never entered.

__seccomp_filter() (kernel/seccomp.c) puts the filter's error into the saved registers of the call
and returns -1, so that this error is no function's result: it is looked for where it was stored.
"""

from collections.abc import Iterator
from typing import Any

from kwhy.arch import Arch
from kwhy.case.evidence import PAGE
from kwhy.diagnose.words import oriented
from kwhy.flow.explore import Decision, Node, entry_state
from kwhy.flow.origin import Finding, Frame, Tracer
from kwhy.flow.terms import Term, assume, mask, parts
from kwhy.record.model import Call, SyscallRecord

FILTER = "__seccomp_filter"
SKIP = -1
"""What it returns for a call that is not to be made."""
NOTE = (
    "a seccomp filter answered in place of the call: the kernel's function for it was not entered, "
    "and its arguments are not in the recording"
)


def filtered(tracer: Tracer, record: SyscallRecord) -> Call | None:
    """The call of the filter that ended a barred system call, None if another thing did."""
    if not record.barred or record.entry is not None:
        return None
    calls = (call for call in record.walk() if tracer.code.name(call.function) == FILTER)
    return next(calls, None)


def findings(tracer: Tracer, record: SyscallRecord, call: Call) -> list[Finding]:
    """How ``call`` can have stored the error: the tests that found what the filter's answer was."""
    explorer, exploration = tracer.explore(call, entry_state(0))
    frame = Frame(0, call, exploration.function, None, None, record.ret, 8, explorer, exploration)
    stored: list[Node] = []
    unseen: list[Node] = []
    for node in exploration.returns:
        assert node.leaving is not None and node.result is not None
        facts = node.leaving.witnessed
        if assume(facts, "eq", node.result, SKIP & mask(4), 4) is None:
            continue
        value = _stored(tracer.arch, node)
        if value is None:
            unseen.append(node)
        elif assume(facts, "eq", value, record.ret & mask(8), 8) is not None:
            stored.append(node)
    frame.accepting = stored or unseen
    return [
        Finding("constant", frame, record.ret & mask(8), [edge], [node])
        for node in frame.accepting
        if (edge := _asked(node)) is not None
    ]


def _stored(arch: Arch, node: Node) -> Term | None:
    """What was written to the call's result in the saved registers."""
    assert node.leaving is not None
    for base, cells in node.leaving.memory.items():
        if not (isinstance(base, tuple) and base[0] == "mem"):
            continue
        for offset, (size, value) in cells.items():
            if size == 8 and any((offset - place) % PAGE == 0 for place in arch.syscall_result):
                return value
    return None


def _asked(node: Node) -> tuple[Node, Decision] | None:
    """The last test on the way to ``node`` that found a callee's result to be some number."""
    for prior, decision in _back(node):
        if decision.kind != "branch" or decision.condition is None:
            continue
        op, term, value, _ = oriented(decision.condition, decision.taken)
        if op == "eq" and isinstance(value, int) and value and _is_result(term):
            return prior, decision
    return None


def _is_result(term: Term) -> bool:
    return any(isinstance(part, tuple) and part[0] == "ret" for part in parts(term))


def _back(node: Node) -> Iterator[tuple[Node, Decision]]:
    """The decisions on one way to a node, the last first."""
    at: Any = node
    while at.before:
        prior, decision = at.before[0]
        if decision is not None:
            yield prior, decision
        at = prior
