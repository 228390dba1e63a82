"""One way to explain a failure, in the words of a verdict."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kwhy.diagnose.analysis import Analysis, renamed
from kwhy.diagnose.cases import Case, cases_of
from kwhy.diagnose.excerpt import excerpts, path_of
from kwhy.diagnose.sites import (
    DEFAULT,
    LOOPS,
    Site,
    case_label,
    following,
    instead,
    led_to,
    locate,
)
from kwhy.diagnose.truth import held
from kwhy.diagnose.words import Words, oriented, readable
from kwhy.errors import FATAL
from kwhy.flow.explore import Decision, Node, prune
from kwhy.flow.loops import leaves
from kwhy.flow.origin import Finding
from kwhy.flow.terms import assume, domain, known, low
from kwhy.kernel.model import Kernel
from kwhy.record.errno import errno_name
from kwhy.verdict import (
    ChainLink,
    Condition,
    Operand,
    Origin,
    Root,
    Statement,
    Verdict,
)

_SAME = re.compile(r"(.+) [=<>]= \1")
"""What holds whatever the values are."""


class Describer:
    """Says one case in the words of a verdict."""

    def __init__(self, kernel: Kernel, words: Words, analysis: Analysis) -> None:
        self.kernel = kernel
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
        if origin.memory is not None:
            where += f"; the error was in {origin.memory}"
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
            place = self._memory(case) or ""
            what = f"what {place} held" if readable(place) else "an error read from memory"
            return f"{head}: {origin.function}() returned {what}"
        return f"{head}: made in {where}"

    # --- parts ------------------------------------------------------------------------------------

    def conditions(self, case: Case) -> tuple[Condition, ...]:
        """The enclosing conditions and the deciding one, outermost first."""
        if not case.edges or case.site is None:
            return ()
        made = {
            self.words.condition(decision.condition, decision.taken): self.condition(
                case.finding, node, decision, case.site
            )
            for node, decision in case.edges
        }
        deciding = next(iter(made.values()))
        if len(case.edges) > 1 and case.site.condition is not None:
            deciding = self._together(case, deciding, made)
        return (*self._enclosing(case), deciding)

    def _together(self, case: Case, first: Condition, made: dict[str, Condition]) -> Condition:
        """Several branches at one source condition as one condition of the verdict.

        Where one way out needs the condition to be true and another to be false, the lines of one
        of them are another statement's: then there is no telling by lines.
        """
        ended = [one for one in made.values() if one.taken is False and self._loop(case)]
        whole = replace(ended[0] if ended else first, expr=" or ".join(made), atom=None)
        if ended or len({one.taken for one in made.values()}) == 1:
            return whole
        telling = [expr for expr in made if not _SAME.fullmatch(expr)]
        return replace(whole, expr=" or ".join(telling), text="", statement=None)

    @staticmethod
    def _loop(case: Case) -> bool:
        condition = case.site.condition if case.site else None
        return condition is not None and condition.kind in LOOPS

    def _enclosing(self, case: Case) -> tuple[Condition, ...]:
        site = case.site
        parsed = self.kernel.parsed(site.file) if site and site.file else None
        if site is None or parsed is None or site.condition is None:
            return ()
        guards = parsed.guards(site.condition.start, site.condition.column)
        if not guards:
            return ()
        keep = prune(case.finding.accepting)
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
        left = None
        if source is not None and source.kind in LOOPS and after and other_way:
            left = leaves(function, node.segment.start, after[0], other_way[0])
        truth = held(self.kernel, site, decision, after, other_way, error, left)
        if decision.kind == "fault":
            expr = "the access to user memory faulted" if decision.taken else "no fault"
        elif decision.kind == "switch":
            expr = self.words.condition(decision.condition, True)
        else:
            expr = self.words.condition(decision.condition, decision.taken)
        case = case_label(self.kernel, site, node, decision)
        statement = led_to(self.kernel, site, truth, case)
        return Condition(
            file=site.file,
            line=site.line,
            function=site.function,
            text=source.text if source else "",
            expr=expr,
            taken=truth,
            operands=self.operands(node, decision, finding),
            offset=site.offset,
            statement=Statement(text=statement.text, line=statement.start, file=site.file)
            if statement
            else None,
            atom=source.atom if source and source.certain and source.atom != source.text else None,
            case=case,
        )

    def operands(self, node: Node, decision: Decision, finding: Finding) -> tuple[Operand, ...]:
        """What was compared, with the values that are known."""
        if decision.condition is None:
            return ()
        _, a, b, size = oriented(decision.condition, decision.taken)
        after = next((child for child, made in node.after if made is decision), node)
        facts = after.state.witnessed
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
            before = known(term, node.state.witnessed) is not None
            value = self.words.known(term, facts, size)
            narrowed = self._by_callee(term, facts, size) if value in (None, "not 0") else None
            value = narrowed or value
            if value is not None:
                exact = known(term, facts) is not None
                seen = self.analysis.watched.source
                source = seen if probed and exact else ("traced" if before else "deduced")
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
        memory = self._memory(case)
        tested = any(memory == operand.expr for one in conditions for operand in one.operands)
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
            memory=memory if memory and readable(memory) and not tested else None,
        )

    def _memory(self, case: Case) -> str | None:
        """The memory that the error was read from."""
        if case.finding.kind != "memory":
            return None
        return self.words.name(case.finding.value)[0].removeprefix("-")

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
        cases = cases_of(self.kernel, self.words, findings)
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
