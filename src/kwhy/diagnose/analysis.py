"""One failed call analysed: where its errno can have been made, and which probes would tell."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from kwhy.arch import Arch
from kwhy.diagnose import barred
from kwhy.diagnose.sites import (
    DEFAULT,
    case_label,
    case_makes,
    following,
    instead,
    locate,
)
from kwhy.diagnose.truth import held
from kwhy.flow.cfg import Code, Function, base_name
from kwhy.flow.decide import Passing
from kwhy.flow.explore import Callee, Decision, Hit, Node, entry_state, prune
from kwhy.flow.origin import Finding, Frame, Tracer, above_parting
from kwhy.flow.state import Cells
from kwhy.flow.terms import low, mask, parts, signed, sym
from kwhy.kernel.model import Kernel
from kwhy.record.errno import errno_name
from kwhy.record.model import Call, SyscallRecord

MAX_PROBES = 48
BPF_CALL = "bpf_dispatcher_nop_func"
"""Inlined wherever a BPF program is called (include/linux/bpf.h), which the tracer does not see."""


@dataclass(frozen=True, slots=True)
class Watched:
    """The registers at branches that were watched: every run of the ``armed`` ones is in ``hits``.

    ``hits`` are in order of time, by the identity of the call they happened in; ``source`` is how
    they were seen.
    """

    hits: dict[int, list[tuple[int, Hit]]] = field(default_factory=dict)
    armed: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()
    source: Literal["probe", "executed"] = "probe"


@dataclass(slots=True)
class Analysis:
    """What one recorded call gave: its record, the frames explored, the places that remain."""

    record: SyscallRecord
    tracer: Tracer
    findings: list[Finding]
    watched: Watched
    notes: list[str] = field(default_factory=list)


def analyse(
    kernel: Kernel,
    arch: Arch,
    code: Code,
    record: SyscallRecord,
    watched: Watched | None = None,
) -> Analysis:
    """Where ``record``'s errno can have been made, also by what was ``watched`` of its branches."""
    watched = watched or Watched()
    entry = record.entry
    if entry is None:
        return _barred(kernel, code, record, watched)
    _prefetch(kernel, record)
    hits, armed = watched.hits, watched.armed
    tracer = _tracer(kernel, code, hits, armed, oracle=False)
    findings = _trace(arch, tracer, record, entry)
    executed = watched.source == "executed"
    if executed or len(findings) != 1 or len(findings[0].deciding) > 1:
        # What the callees can have returned, by their own calls, rules out some paths; and of an
        # execution it is known by every branch, so that an error handed on is seen as that.
        settled = {} if executed or tracer.cut else above_parting(findings)
        second = _tracer(kernel, code, hits, armed, oracle=True, settled=settled)
        better = _trace(arch, second, record, entry)
        if better:
            tracer, findings = second, better
    return Analysis(record, tracer, findings, watched, [*watched.notes, *tracer.notes])


def _barred(kernel: Kernel, code: Code, record: SyscallRecord, watched: Watched) -> Analysis:
    """Of a call whose own function was not entered."""
    tracer = _tracer(kernel, code, {}, frozenset(), oracle=False)
    call = barred.filtered(tracer, record)
    if call is None:
        note = "the system call's own function was not seen"
        return Analysis(record, tracer, [], watched, [note])
    findings = barred.findings(tracer, record, call)
    return Analysis(record, tracer, findings, watched, [barred.NOTE, *tracer.notes])


def _tracer(
    kernel: Kernel,
    code: Code,
    hits: dict[int, list[tuple[int, Hit]]],
    armed: frozenset[int],
    oracle: bool,
    settled: dict[int, Frame] | None = None,
) -> Tracer:
    def prototype(address: int) -> Any:
        return kernel.prototype(address)

    def arity(address: int) -> int | None:
        found = prototype(address)
        return len(found.params) if found and not found.variadic and not found.optimised else None

    def boolean(address: int) -> bool:
        found = prototype(address)
        return bool(found and kernel.types.is_bool(found.ret))

    def error(address: int) -> bool:
        found, types = prototype(address), kernel.types
        if found is None or types.is_pointer(found.ret) or types.is_signed(found.ret):
            return True
        return not types.is_struct(found.ret) and types.size(found.ret) == 8  # get_unmapped_area()

    def passing(function: Function, node: Node, decision: Decision, want: int) -> Passing | None:
        site = locate(kernel, decision.address)
        condition = site.condition
        if condition is None:
            return None
        if condition.kind == "switch":
            label = case_label(kernel, site, node, decision)
            error = errno_name(want) or ""
            if label in (None, DEFAULT) or case_makes(kernel, site, label or "", error):
                return None
            return "dispatch"
        clause = condition.kind == "if" and condition.else_line is None
        if not (clause and decision.kind == "branch") and condition.kind != "?:":
            return None
        after = [n.segment.start for n in following(node, decision)]
        applied = held(kernel, site, decision, after, instead(function, node, decision))
        return None if applied else "guard"

    def spelled(finding: Finding) -> bool:
        name = errno_name(finding.frame.want)
        made = re.compile(rf"(?:\breturn|[^=!<>]=|ERR_PTR\()\s*-{name}\b")
        sites = (locate(kernel, d.address) for _, d in finding.deciding)
        return any(made.search(_body(kernel, site.file, site.function)) for site in sites)

    @functools.cache
    def program(address: int) -> bool:
        return any(frame.function == BPF_CALL for frame in kernel.frames(address))

    return Tracer(
        code,
        hits=hits,
        armed=armed,
        arity=arity,
        returns_bool=boolean,
        returns_error=error,
        oracle=oracle,
        settled=settled,
        passing=passing,
        spelled=spelled,
        quiet=program,
    )


def _body(kernel: Kernel, file: str | None, function: str) -> str:
    """The source text of a function, "" without it."""
    parsed = kernel.parsed(file) if file else None
    found = parsed.function_named(function) if parsed else None
    return "\n".join(parsed.lines[found.start - 1 : found.end]) if parsed and found else ""


def _trace(arch: Arch, tracer: Tracer, record: SyscallRecord, entry: Call) -> list[Finding]:
    state = entry_state(0)
    name = tracer.code.name(entry.function)
    if name.startswith(arch.syscall_prefixes[:2]) and not record.compat:
        # The wrapper's only argument points to the saved registers.
        base = sym("init", 0, arch.arguments[0])
        state.memory[base] = Cells(
            (offset, (8, sym("arg", n, value & mask(8))))
            for n, (offset, value) in enumerate(
                zip(arch.syscall_arguments, record.args, strict=False)
            )
        )
    return tracer.trace(entry, record.ret, state)


def _prefetch(kernel: Kernel, record: SyscallRecord) -> None:
    """All the code that the call ran through, in one exchange with the target."""
    ranges = set()
    for call in record.walk():
        symbol = kernel.symbols.at(call.function)
        if symbol is not None:
            ranges.add((symbol.address, min(symbol.size, 1 << 16)))
    kernel.prefetch(sorted(ranges))


def probed(code: Code, record: SyscallRecord, probes: dict[str, int]) -> Watched:
    """What the probes of a recording saw; ``probes`` gives the address of each.

    A hit is given to the call that it happened in.
    """
    out: dict[int, list[tuple[int, Hit]]] = {}
    notes = []
    for hit in record.probes:
        address = probes.get(hit.name)
        if address is None:
            continue
        function = base_name(code.name(address))
        frame = None
        level: Sequence[Call] = record.calls
        while True:
            earlier = [c for c in level if c.time <= hit.time]
            if not earlier:
                break
            last = earlier[-1]
            if base_name(code.name(last.function)) == function:
                frame = last
            level = last.children
        if frame is None:
            notes.append(f"a probe hit in {function} belongs to no recorded call")
            continue
        values = {k: v & mask(8) for k, v in hit.values.items() if isinstance(v, int)}
        out.setdefault(id(frame), []).append((hit.time, Hit(address, values)))
    return Watched(out, frozenset(probes.values()), tuple(notes))


# --- what would tell the candidates apart --------------------------------------------------------


def probe_addresses(findings: Sequence[Finding]) -> list[int]:
    """Branches worth a probe: the deciding ones first, then those that went both ways."""
    out: dict[int, None] = {}
    for finding in findings:
        for _, decision in finding.deciding:
            if decision.kind in ("branch", "select"):
                out[decision.address] = None
    for finding in findings:
        for frame in finding.chain():
            keep = prune(frame.exploration.returns)
            directions: dict[int, set[bool]] = {}
            for edge in _edges(frame.exploration.root, keep):
                if edge is not None and edge.kind in ("branch", "select"):
                    directions.setdefault(edge.address, set()).add(edge.taken)
            if len(findings) > 1 or len(finding.deciding) > 1:
                for address, ways in directions.items():
                    if len(ways) > 1:
                        out[address] = None
    return list(out)[:MAX_PROBES]


def _edges(root: Node, keep: set[int]) -> list[Decision | None]:
    out = []
    done = {id(root)}
    todo = [root]
    while todo:
        node = todo.pop()
        for child, decision in node.after:
            if id(child) in keep:
                out.append(decision)
                if id(child) not in done:
                    done.add(id(child))
                    todo.append(child)
    return out


def probe_definitions(arch: Arch, addresses: Sequence[int]) -> list[dict[str, Any]]:
    """Kprobe events that record all registers and the flags just before each instruction."""
    fetch = " ".join(f"{name}=%{probe}:x64" for name, probe in arch.probe_registers.items())
    return [
        {"name": f"k{i}", "definition": f"p:k{i} {address:#x} {fetch}", "address": address}
        for i, address in enumerate(addresses)
    ]


# --- a refusal that was renamed on its way --------------------------------------------------------


def renamed(analysis: Analysis, finding: Finding, edge: tuple[Node, Decision]) -> list[Finding]:
    """Where the error was first made when the deciding branch tested another error number."""
    node, decision = edge
    if decision.condition is None:
        return []
    frame = finding.frame
    facts = _facts_after(node, decision)
    for part in (decision.condition[1], decision.condition[2]):
        for term in parts(part):
            if not isinstance(term, tuple) or term[0] != "ret" or term[1] != frame.number:
                continue
            k = term[2]
            if not isinstance(k, int):
                continue
            item = frame.explorer.observed[k]
            if not isinstance(item, Callee) or item.tag is None:
                continue
            error = _one_error(analysis.tracer, item.tag, term, facts)
            if error is None or error == finding.frame.want:
                continue
            keep = prune(finding.accepting)
            callers = [n for n in frame.exploration.calls.get(k, []) if id(n) in keep]
            if not callers:
                continue
            state = analysis.tracer.entry(callers)
            return analysis.tracer.trace(
                item.tag, error, state, frame, callers[0].segment.last.end, 1
            )
    return []


def _facts_after(node: Node, decision: Decision) -> Any:
    for child, made in node.after:
        if made is decision:
            return child.state.witnessed
    return node.state.witnessed


def _one_error(tracer: Tracer, call: Call, term: Any, facts: Any) -> int | None:
    """The single error number that ``call`` can have returned, None if there is no single one."""
    returned = tracer.returned(call)
    for size in (4, 8):
        spans = list(returned.get(size, ()))
        given = facts.get(low(size, term))
        if given is not None:
            spans = [
                (max(a, c), min(b, d)) for a, b in spans for c, d in given if max(a, c) <= min(b, d)
            ] or ([] if spans else list(given))
        errors = set()
        for lo, hi in spans:
            if hi - lo > 4:
                errors.add(0)
                break
            errors |= {signed(v, size) for v in range(lo, hi + 1)}
        if len(errors) == 1 and -4095 <= (value := errors.pop()) < 0:
            return value
    return None
