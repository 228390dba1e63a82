"""Why a system call failed: from the evidence of a case to a verdict."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kwhy import arch as architectures
from kwhy.arch import Arch
from kwhy.case.evidence import Evidence
from kwhy.diagnose.analysis import Analysis, analyse, probe_addresses, renamed
from kwhy.diagnose.excerpt import excerpts, path_of
from kwhy.diagnose.sites import (
    DEFAULT,
    Site,
    asked,
    case_label,
    following,
    held,
    instead,
    led_to,
    locate,
)
from kwhy.diagnose.words import Words, oriented, readable
from kwhy.errors import FATAL
from kwhy.flow.cfg import Code, base_name
from kwhy.flow.explore import Decision, Node, prune
from kwhy.flow.origin import Finding
from kwhy.flow.terms import assume, known, parts
from kwhy.kernel.model import Kernel
from kwhy.record.errno import errno_name
from kwhy.record.model import SyscallRecord
from kwhy.verdict import (
    Candidate,
    ChainLink,
    Condition,
    FailedCall,
    KernelId,
    Operand,
    Origin,
    OtherFailure,
    Root,
    Statement,
    Verdict,
)
from kwhy.verdict import Evidence as Account

MAX_CANDIDATES = 32


@dataclass(slots=True)
class Case:
    """One way to explain the failure: a finding and its branches at one source condition."""

    finding: Finding
    edges: list[tuple[Node, Decision]]
    site: Site | None


def explain_call(
    evidence: Evidence,
    kernel: Kernel,
    record: SyscallRecord,
    *,
    code: Code | None = None,
    probes: dict[str, int] | None = None,
    account: Account | None = None,
    others: Sequence[OtherFailure] = (),
    kmsg: Sequence[str] = (),
) -> tuple[Verdict, Analysis]:
    """The verdict on one recorded call, and the analysis behind it."""
    arch = architectures.of(kernel.arch)
    code = code or Code(kernel, arch)
    analysis = analyse(kernel, arch, code, record, probes)
    words = Words(kernel, analysis.tracer, arch)
    cases = _cases(kernel, words, analysis.findings)
    notes = tuple(dict.fromkeys([*(account.notes if account else ()), *record.notes,
                                 *analysis.notes, *kernel.notes]))  # fmt: skip
    account = replace(account or Account(rounds=1), notes=notes)
    if record.lost:
        account = replace(
            account,
            notes=(*notes, "events were lost while this call ran: its path may be incomplete"),
        )
    call = _failed_call(record)
    missing = record.entry is None and call.errno == "ENOSYS"
    base = Verdict(
        summary=f"{call.syscall} failed with {call.errno}"
        + (
            ": this kernel has no system call of that number"
            if missing
            else "; where it was decided is not known"
        ),
        confidence="unknown",
        kernel=KernelId(release=kernel.release, build_id=kernel.build_id, arch=kernel.arch),
        evidence=account,
        call=call,
        origin=None,
        kmsg=tuple(kmsg),
        others=tuple(others),
    )
    if not cases:
        return base, analysis
    describe = _Describer(kernel, arch, code, words, analysis)
    first = cases[0]
    if len(cases) > 1:
        return _ambiguous(base, describe, cases), analysis
    verdict = describe.verdict(base, first)
    return verdict, analysis


def _failed_call(record: SyscallRecord) -> FailedCall:
    return FailedCall(
        pid=record.pid,
        tid=record.tid,
        comm=record.comm,
        syscall=record.name,
        args=tuple(f"{a & ((1 << 64) - 1):#x}" for a in record.args),
        ret=record.ret,
        errno=errno_name(record.ret) or str(record.ret),
    )


def _cases(kernel: Kernel, words: Words, findings: Sequence[Finding]) -> list[Case]:
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


def _tests(kernel: Kernel, test: Case, case: Case) -> bool:
    """Whether ``test`` asks a variable that was given what ``case``'s inlined function returned."""
    inner, outer = case.site, test.site
    if inner is None or outer is None or outer.condition is None:
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
            prototype = kernel.types.prototype(base_name(function.name))
            if prototype is not None and kernel.types.is_pointer(prototype.ret):
                return True
            return _ERROR_FIELD.search(words.name(case.finding.value)[0].split(">")[-1]) is None
        return False

    strong = [c for c in cases if c.finding.kind == "constant" or not weak(c)]
    return strong if made else cases


def _ambiguous(base: Verdict, describe: "_Describer", cases: list[Case]) -> Verdict:
    candidates = []
    for case in cases[:MAX_CANDIDATES]:
        part = describe.verdict(base, case)
        assert part.origin is not None
        addresses = probe_addresses([case.finding])
        where = describe.offset(addresses[0]) if addresses else None
        candidates.append(
            Candidate(
                origin=part.origin,
                conditions=part.conditions,
                chain=part.chain,
                why=(f"a probe at {where} tells; run again with --repeat 2" if where else ""),
                probe=where,
            )
        )
    first = describe.verdict(base, cases[0])
    functions = list(dict.fromkeys(c.origin.function for c in candidates))
    place = functions[0] + "()" if len(functions) == 1 else f"one of {len(functions)} functions"
    return replace(
        first,
        summary=f"{base.call.syscall} failed with {base.call.errno} in {place}: "
        f"{len(candidates)} conditions fit what was seen",
        confidence="ambiguous",
        candidates=tuple(candidates),
    )


class _Describer:
    """Says one case in the words of a verdict."""

    def __init__(
        self, kernel: Kernel, arch: Arch, code: Code, words: Words, analysis: Analysis
    ) -> None:
        self.kernel = kernel
        self.arch = arch
        self.code = code
        self.words = words
        self.analysis = analysis

    def offset(self, address: int) -> str:
        """``function+0x1b`` of an address."""
        symbol = self.kernel.symbols.at(address)
        return f"{symbol.name}+{address - symbol.address:#x}" if symbol else f"{address:#x}"

    def verdict(self, base: Verdict, case: Case) -> Verdict:
        """The verdict if this case is the answer."""
        conditions = self.conditions(case)
        origin = self.origin(case, conditions)
        seen = any(d.address in case.finding.frame.explorer.probed for _, d in case.edges)
        kind = case.finding.kind
        confidence: Any = "observed" if seen else "deduced"
        frames = case.finding.chain()
        whole = all(frame.exploration.complete for frame in frames)
        loose = any(frame.explorer.relaxed for frame in frames)
        if (
            kind in ("unknown", "argument")
            or self.analysis.record.lost
            or self.analysis.tracer.cut
            or loose
            or not whole
        ):
            # The best guess is told, but a path over a gap is no proof.
            confidence = "unknown"
        root = self.root(case)
        return replace(
            base,
            summary=self.summary(base, case, origin, conditions),
            confidence=confidence,
            origin=origin,
            conditions=conditions,
            chain=self.chain(case, origin),
            root=root,
            source=excerpts(self.kernel, case.finding, case.site, conditions, origin),
            path=path_of(self.kernel, self.words, case.finding),
        )

    def summary(
        self, base: Verdict, case: Case, origin: Origin, conditions: Sequence[Condition]
    ) -> str:
        """One sentence."""
        head = f"{base.call.syscall} failed with {base.call.errno}"
        where = f"{conditions[-1].function if conditions else origin.function}()"
        if conditions:
            last = conditions[-1]
            if last.case is not None:
                went = "had no case of its own" if last.case == DEFAULT else f"was {last.case}"
                return f"{head}: {last.text} {went} in {where}"
            if last.text:
                truth = "true" if last.taken else "false"
                return f"{head}: {last.text} was {truth} in {where}"
            return f"{head}: {last.expr} in {where}"
        if case.finding.kind == "memory":
            return f"{head}: {where} returned what {self.words.name(case.finding.value)[0]} held"
        return f"{head}: made in {where}"

    # --- parts ------------------------------------------------------------------------------------

    def conditions(self, case: Case) -> tuple[Condition, ...]:
        """The enclosing conditions and the deciding one, outermost first."""
        if not case.edges or case.site is None:
            return ()
        node, decision = case.edges[0]
        deciding = self.condition(case.finding, node, decision, case.site)
        if len(case.edges) > 1 and case.site.condition is not None:
            whole = dict.fromkeys(self.words.condition(d.condition, d.taken) for _, d in case.edges)
            deciding = replace(deciding, expr=" or ".join(whole), atom=None)
        return (*self._enclosing(case), deciding)

    def _enclosing(self, case: Case) -> tuple[Condition, ...]:
        site = case.site
        parsed = self.kernel.parsed(site.file) if site and site.file else None
        if site is None or parsed is None or site.condition is None:
            return ()
        guards = parsed.guards(site.condition.start, site.condition.column)
        if not guards:
            return ()
        keep = prune(case.finding.frame.exploration, case.finding.accepting)
        edges = _kept_edges(case.finding, keep)
        out = []
        for guard in (g for g in guards if g.condition.kind != "do"):
            for node, decision in edges:
                where = locate(self.kernel, decision.address)
                if (
                    where.condition is not None
                    and where.file == site.file
                    and where.condition.start == guard.condition.start
                    and where.condition.text == guard.condition.text
                ):
                    made = self.condition(case.finding, node, decision, where)
                    out.append(replace(made, taken=guard.side == "then"))
                    break
        return tuple(out)

    def condition(self, finding: Finding, node: Node, decision: Decision, site: Site) -> Condition:
        """One branch as a condition of the verdict."""
        source = site.condition
        after = [n.segment.start for n in following(node, decision)]
        function = finding.frame.function
        other_way = instead(function, node, decision)
        error = errno_name(finding.frame.want)
        truth = held(self.kernel, site, decision, after, other_way, error)
        if decision.kind == "fault":
            expr = "the access to user memory faulted" if decision.taken else "no fault"
        elif decision.kind == "switch":
            expr = self.words.condition(decision.condition, True)
        else:
            expr = self.words.condition(decision.condition, decision.taken)
        statement = led_to(self.kernel, site, truth)
        return Condition(
            file=site.file,
            line=site.line,
            function=site.function,
            text=source.text if source else "",
            expr=expr,
            taken=truth,
            operands=self.operands(node, decision, site, finding),
            offset=site.offset,
            statement=Statement(text=statement.text, line=statement.start, file=site.file)
            if statement
            else None,
            atom=source.atom if source and source.certain and source.atom != source.text else None,
            case=case_label(self.kernel, site, node, decision),
        )

    def operands(
        self, node: Node, decision: Decision, site: Site, finding: Finding
    ) -> tuple[Operand, ...]:
        """What was compared, with the values that are known."""
        if decision.condition is None:
            return ()
        _, a, b, size = oriented(decision.condition, decision.taken)
        facts = next((c.state.facts for c, d in node.after if d is decision), node.state.facts)
        if decision.kind == "computed":
            facts = assume(facts, *decision.condition) or facts
        probed = decision.address in finding.frame.explorer.probed
        out = []
        for term, other in ((a, b), (b, a)):
            if isinstance(term, int):
                if term == 0 and not isinstance(other, int):
                    continue
                kind = self.words.name(other)[1]
                out.append(
                    Operand(expr=self.words.value(term, kind, size),
                            value=self.words.value(term, kind, size), source="constant")
                )  # fmt: skip
                continue
            text, _ = self.words.name(term)
            if not readable(text):
                continue
            before = known(term, node.state.facts) is not None
            value = self.words.known(term, facts, size)
            narrowed = self._by_callee(term, facts, size) if value in (None, "not 0") else None
            value = narrowed or value
            if value is not None:
                exact = known(term, facts) is not None
                source = "probe" if probed and exact else ("traced" if before else "deduced")
                out.append(Operand(expr=text, value=value, source=source))
        return tuple(out)

    def _by_callee(self, term: Any, facts: Any, size: int) -> str | None:
        """The value of a callee's result where its own calls leave just one."""
        while isinstance(term, tuple) and term[0] in ("low", "sext"):
            term = term[2]
        if not (isinstance(term, tuple) and term[0] == "ret" and isinstance(term[2], int)):
            return None
        frame = self.analysis.tracer.frames.get(term[1])
        if frame is None:
            return None
        observed = frame[2]
        call = getattr(observed[term[2]], "tag", None) if term[2] < len(observed) else None
        if call is None:
            return None
        spans = self.analysis.tracer.returned(call).get(size)
        if not spans:
            return None
        from kwhy.flow.terms import domain, low

        left = {
            v
            for lo, hi in spans
            if hi - lo < 8
            for v in range(lo, hi + 1)
            if any(x <= v <= y for x, y in domain(low(size, term), facts))
        }
        if len(left) == 1 and all(hi - lo < 8 for lo, hi in spans):
            return self.words.value(left.pop(), self.words.name(term)[1], size)
        return None

    def origin(self, case: Case, conditions: Sequence[Condition]) -> Origin:
        """Where the error number was made."""
        frame = case.finding.frame
        function = frame.function.name
        symbol = self.kernel.symbols.at(frame.function.entry)
        statement = conditions[-1].statement if conditions else None
        address = case.edges[0][1].address if case.edges else frame.function.entry
        frames = self.kernel.frames(address)
        file = case.site.file if case.site else (frames[-1].file if frames else None)
        line = statement.line if statement else (case.site.line if case.site else None)
        comment = None
        parsed = self.kernel.parsed(file) if file else None
        if parsed is not None:
            name = case.site.function if case.site else function
            comment = parsed.comment_above(name) or None
        return Origin(
            function=function,
            inlined=case.site.inlined if case.site else (),
            file=file,
            line=line,
            offset=f"{address - frame.function.entry:#x}" if case.edges else None,
            comment=comment,
            statement=statement,
            module=getattr(symbol, "module", None),
        )

    def chain(self, case: Case, origin: Origin) -> tuple[ChainLink, ...]:
        """The functions that handed the error up, origin first."""
        out = []
        below = None
        for frame in case.finding.chain():
            file, line = origin.file, origin.line
            if below is not None:
                frames = self.kernel.frames(below - 1)
                file = frames[-1].file if frames else None
                line = frames[-1].line if frames else None
            out.append(
                ChainLink(function=frame.function.name, ret=frame.want, file=file, line=line)
            )
            below = frame.site
        return tuple(out)

    def root(self, case: Case) -> Root | None:
        """Where the refusal was first decided, if the error number was replaced on its way up."""
        if case.finding.kind != "constant" or not case.edges:
            return None
        try:
            findings = renamed(self.analysis, case.finding, case.edges[0])
        except FATAL:
            raise
        except Exception as error:
            self.analysis.notes.append(f"the first refusal could not be followed: {error}")
            return None
        cases = _cases(self.kernel, self.words, findings)
        if len(cases) != 1:
            return None
        one = cases[0]
        conditions = self.conditions(one)
        origin = self.origin(one, conditions)
        return Root(
            function=origin.function,
            errno=errno_name(one.finding.frame.want) or str(one.finding.frame.want),
            inlined=origin.inlined,
            file=origin.file,
            line=origin.line,
            offset=origin.offset,
            conditions=conditions,
            comment=origin.comment,
            statement=origin.statement,
            module=origin.module,
        )


def _kept_edges(finding: Finding, keep: set[int]) -> list[tuple[Node, Decision]]:
    out = []
    done: set[int] = set()
    todo = list(finding.accepting)
    while todo:
        node = todo.pop()
        if id(node) in done:
            continue
        done.add(id(node))
        for prior, decision in node.before:
            if id(prior) in keep:
                if decision is not None:
                    out.append((prior, decision))
                todo.append(prior)
    return out
