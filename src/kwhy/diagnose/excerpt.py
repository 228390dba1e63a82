"""The source around a decision with the path marked, and the path itself as instructions."""

from collections.abc import Sequence

from kwhy.diagnose.sites import Site
from kwhy.diagnose.words import Words, readable
from kwhy.flow.explore import Decision, Node, prune
from kwhy.flow.origin import Finding
from kwhy.kernel.model import Kernel
from kwhy.kernel.source import SourceFile
from kwhy.verdict import Condition, Excerpt, Instruction, Mark, Origin

BEFORE = 6
AFTER = 3
MAX_LINES = 24
MAX_EXACT = 400


def excerpts(
    kernel: Kernel,
    finding: Finding,
    site: Site | None,
    conditions: Sequence[Condition],
    origin: Origin,
) -> tuple[Excerpt, ...]:
    """The lines around the deciding condition; () without source text."""
    if site is None or site.file is None or site.condition is None:
        return ()
    text = kernel.source(site.file)
    parsed = kernel.parsed(site.file)
    if text is None or parsed is None:
        return ()
    lines = text.splitlines()
    decides = site.condition
    function = parsed.function_at(decides.start)
    wanted = [c.line for c in conditions if c.line and c.file == site.file]
    if origin.statement and origin.statement.line:
        wanted.append(origin.statement.line)
    wanted += [decides.start, decides.end]
    first = max(min(wanted) - BEFORE, function.start if function else 1, decides.end - MAX_LINES)
    last = min(max(wanted) + AFTER, function.end if function else len(lines), first + MAX_LINES)
    run = _lines_run(kernel, finding, site) | {c.line for c in conditions if c.line}
    marks = [
        Mark(line=n, kind="path")
        for n in sorted(run)
        if first <= n <= last
        and not decides.start <= n <= decides.end
        and not _merged(parsed, n, run)
    ]
    note = conditions[-1].expr if conditions and readable(conditions[-1].expr) else None
    column, end_column = _span(lines[decides.start - 1], decides.atom, decides.text)
    marks.append(
        Mark(line=decides.start, kind="decides", column=column, end_column=end_column, note=note)
    )
    if origin.statement and origin.statement.line and first <= origin.statement.line <= last:
        marks = [m for m in marks if m.line != origin.statement.line or m.kind == "decides"]
        if origin.statement.line != decides.start:
            marks.append(Mark(line=origin.statement.line, kind="result"))
    marks.sort(key=lambda m: (m.line, m.kind))
    return (
        Excerpt(
            file=site.file, first=first, lines=tuple(lines[first - 1 : last]), marks=tuple(marks)
        ),
    )


def _merged(parsed: SourceFile, line: int, run: set[int]) -> bool:
    """Whether a line only seems to have run: its code serves another statement too.

    Such a line stands under a condition that was never tested.
    """
    for guard in parsed.guards(line):
        head = range(guard.condition.start, guard.condition.end + 1)
        if guard.condition.kind == "if" and line not in head and not run.intersection(head):
            return True
    return False


def _span(line: str, atom: str, text: str) -> tuple[int | None, int | None]:
    for part in (atom, text):
        at = line.find(part)
        if part and at >= 0:
            return at + 1, at + 1 + len(part)
    return None, None


def _lines_run(kernel: Kernel, finding: Finding, site: Site) -> set[int]:
    """Lines of the deciding function that certainly ran."""
    out: set[int] = set()
    for node in certain_nodes(finding):
        for address in (node.segment.start, node.segment.last.address):
            for frame in kernel.frames(address):
                if frame.file == site.file and frame.function == site.function and frame.line:
                    out.add(frame.line)
    return out


def certain_nodes(finding: Finding) -> list[Node]:
    """The nodes that every remaining path of the origin frame goes through, in order."""
    root = finding.frame.exploration.root
    keep = prune(finding.accepting)
    goal = {id(n) for n in finding.accepting}

    def reaches(without: Node | None) -> list[Node] | None:
        """Nodes of some path from root to a goal that avoids ``without``; None if there is none."""
        if without is root:
            return None
        came: dict[int, Node | None] = {id(root): None}
        todo = [root]
        while todo:
            node = todo.pop()
            if id(node) in goal:
                path = []
                here: Node | None = node
                while here is not None:
                    path.append(here)
                    here = came[id(here)]
                return path[::-1]
            for child, _ in node.after:
                if id(child) in keep and id(child) not in came and child is not without:
                    came[id(child)] = node
                    todo.append(child)
        return None

    some = reaches(None)
    if some is None:
        return []
    if len(some) > MAX_EXACT:
        return some[:1] + some[-1:]
    return [node for node in some if reaches(node) is None]


def path_of(kernel: Kernel, words: Words, finding: Finding) -> tuple[Instruction, ...]:
    """The branches that every remaining path takes, in order, and which way they went."""
    keep = prune(finding.accepting)
    deciding = {(d.address, d.taken) for _, d in finding.deciding}
    out = []
    for node in certain_nodes(finding):
        edges = {
            (d.taken, d.index): d for child, d in node.after if d is not None and id(child) in keep
        }
        last = node.segment.last
        symbol = kernel.symbols.at(last.address)
        offset = (
            f"{symbol.name}+{last.address - symbol.address:#x}" if symbol else f"{last.address:#x}"
        )
        if len(edges) == 1:
            decision = next(iter(edges.values()))
            out.append(_branch(words, offset, last.text, decision, deciding))
        elif node.segment.kind == "call":
            target = node.segment.target
            name = kernel.symbols.at(target) if target is not None else None
            text = f"call {name.name}" if name else last.text
            out.append(Instruction(offset=offset, text=text))
    return tuple(out)


def _branch(
    words: Words, offset: str, text: str, decision: Decision, deciding: set[tuple[int, bool]]
) -> Instruction:
    way = "taken" if decision.taken else "not taken"
    if decision.kind == "fault":
        note = "faulted" if decision.taken else "no fault"
    else:
        note = f"{way}: {words.condition(decision.condition, decision.taken)}"
    return Instruction(
        offset=offset,
        text=text,
        kind="decides" if (decision.address, decision.taken) in deciding else "path",
        note=note,
    )
