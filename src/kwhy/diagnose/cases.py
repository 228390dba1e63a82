"""The ways to explain a failure: what the flow analysis found, by source condition."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kwhy.diagnose.sites import Site, led_to, locate
from kwhy.diagnose.truth import asked
from kwhy.diagnose.words import Words
from kwhy.flow.explore import Decision, Node
from kwhy.flow.origin import Finding
from kwhy.flow.terms import parts
from kwhy.kernel.model import Kernel
from kwhy.record.errno import errno_name


@dataclass(slots=True)
class Case:
    """One way to explain the failure: a finding and its branches at one source condition."""

    finding: Finding
    edges: list[tuple[Node, Decision]]
    site: Site | None


def cases_of(kernel: Kernel, words: Words, findings: Sequence[Finding]) -> list[Case]:
    """Findings taken apart by source condition; the same condition twice is one case."""
    out: dict[Any, Case] = {}
    for finding in findings:
        if not finding.deciding:
            out.setdefault((finding.frame.function.entry, finding.kind), Case(finding, [], None))
        for edge in finding.deciding:
            site = _site(kernel, finding, edge[1])
            key = (finding.frame.function.entry, *site.identity)
            if key in out:
                out[key].edges.append(edge)
            else:
                out[key] = Case(finding, [edge], site)
    return _likely(kernel, words, _joined(kernel, list(out.values())))


def _site(kernel: Kernel, finding: Finding, decision: Decision) -> Site:
    """Where a branch stands; if that says nothing, where the call is whose result it tests.

    What is made without a jump (``sbb``, ``ok() - 1``) has the line of the statement behind it.
    """
    site = locate(kernel, decision.address)
    if site.condition is not None or decision.condition is None:
        return site
    for term in decision.condition[1:3]:
        for part in parts(term):
            call = finding.frame.explorer.call_of(part)
            found = locate(kernel, call) if call is not None else site
            if found.condition is not None:
                return replace(found, address=site.address, offset=site.offset)
    return site


def _joined(kernel: Kernel, cases: list[Case]) -> list[Case]:
    """Cases in an inlined function made one with the test of its result, if that is a case too.

    ``sock = sock_from_file(file); if (!sock)``: where the compiler went on from the branch in
    sock_from_file() that returned NULL straight to the error, the test has no jump for it.
    """
    kept = []
    for case in cases:
        test = next((t for t in cases if t is not case and _tests(kernel, t, case)), None)
        if test is None:
            kept.append(case)
        else:
            test.edges += case.edges
    return kept


_IS_ERR = re.compile(r"(?:unlikely\()?IS_ERR\(")


def _tests(kernel: Kernel, test: Case, case: Case) -> bool:
    """Whether ``test`` asks a variable that was given what ``case``'s inlined function returned.

    Not where it hands on the error that was made in there: ``if (IS_ERR(parent)) return parent;``.
    """
    inner, outer = case.site, test.site
    if inner is None or outer is None or outer.condition is None:
        return False
    if _IS_ERR.match(outer.condition.core):
        made = led_to(kernel, outer, not outer.condition.negated)
        error = errno_name(case.finding.frame.want)
        if made is None or re.search(rf"-{error}\b", made.text) is None:
            return False
    if not inner.inlined or test.finding.frame.function is not case.finding.frame.function:
        return False
    frames = itertools.pairwise(kernel.frames(inner.address))
    around = next((caller for frame, caller in frames if frame.function == inner.function), None)
    parsed = kernel.parsed(around.file) if around and around.file else None
    if around is None or parsed is None or not around.line:
        return False
    if (around.function, around.file) != (outer.function, outer.file):
        return False
    statement = parsed.statement(around.line)
    variable = re.escape(asked(outer.condition))
    given = rf"\b{variable}\s*=[^=].*\b{inner.function}\("
    return statement is not None and re.search(given, statement.text) is not None


_ERROR_FIELD = re.compile(r"err|ret|res|stat|code")


def _likely(kernel: Kernel, words: Words, cases: list[Case]) -> list[Case]:
    """Without the cases that say nothing new, or that only a wild value would make true."""
    made = [c for c in cases if c.finding.kind == "constant"]
    known = {(c.finding.frame.function.entry, d.address) for c in made for _, d in c.edges}

    def weak(case: Case) -> bool:
        function = case.finding.frame.function
        if case.finding.kind in ("unknown", "argument"):
            # A computed number that happens to equal the error, in a helper that knows no errors.
            value = case.finding.value
            computed = not isinstance(value, int) and value[0] in ("bin", "add", "not")
            if computed or not words.tracer.code.traceable(function.entry):
                return True
            # The same branches with a value that was lost on the way.
            return bool(case.edges) and all(
                (function.entry, d.address) in known for _, d in case.edges
            )
        if case.finding.kind == "memory":
            # Error pointers are handed on, hardly ever stored; and what is no error's place
            # (a limit, a length) equals one only in theory.
            prototype = kernel.prototype(function.entry)
            if prototype is not None and kernel.types.is_pointer(prototype.ret):
                return True
            return _ERROR_FIELD.search(words.name(case.finding.value)[0].split(">")[-1]) is None
        return False

    strong = [c for c in cases if c.finding.kind == "constant" or not weak(c)]
    return strong if made else cases
