"""The verdict for a person at a terminal, in the manner of a compiler's diagnostic.

A headline, the source with the path marked, what decided and with which values, how the error came
to the caller, how sure that is, and what else is known. Words and indents carry the structure, not
boxes or colour: it reads the same in a pipe and by ear.
"""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Final, Literal, TextIO

from rich.console import Console

from kwhy.report import calls, context, excerpt, words
from kwhy.report.page import Page, clean
from kwhy.verdict import (
    Candidate,
    ChainLink,
    Condition,
    Excerpt,
    Origin,
    Root,
    Statement,
    Verdict,
)

Color = Literal["auto", "always", "never"]

WIDTH: Final = 80  # columns of a pipe
WIDEST: Final = 120  # longer lines are hard to read
_HEAD: Final = "bold"
_PLACE: Final = "cyan"


def display(
    draw: Callable[[int], Page],
    file: TextIO | None = None,
    *,
    color: Color = "auto",
    width: int | None = None,
) -> None:
    """Print the page that ``draw`` makes for a number of columns to ``file`` (standard output).

    ``color`` "auto" means: on a terminal, unless NO_COLOR is set. ``width`` in columns; None means
    the terminal's, 80 in a pipe.
    """
    out = file or sys.stdout
    tty = out.isatty()
    wanted = tty and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    colored = color == "always" or (color == "auto" and wanted)
    console = Console(
        file=out,
        force_terminal=colored,
        color_system=("auto" if tty else "standard") if colored else None,
        no_color=not colored,
        markup=False,
        emoji=False,
        highlight=False,
        legacy_windows=False,
    )
    if width is None:
        width = min(console.width, WIDEST) if tty else WIDTH
    text = draw(width).text(ascii=not _can_unicode(out))
    if not colored:
        out.write(text.plain)
    else:
        console.print(text, end="", soft_wrap=True)
    out.flush()


def plain(verdict: Verdict, width: int = WIDTH) -> str:
    """The report as plain text."""
    return render(verdict, width).text().plain


def render(verdict: Verdict, width: int = WIDTH) -> Page:
    """The report of ``verdict`` as a page of ``width`` columns (at least 40)."""
    page = Page(width=max(40, width))
    _headline(page, verdict)
    if verdict.evidence.lost:
        lost = words.count(verdict.evidence.lost, "trace event")
        was = "was" if verdict.evidence.lost == 1 else "were"
        page.write(
            ("warning: ", "bold yellow"),
            (f"{lost} {was} lost; a call missing from the trace may have been made", ""),
            hang=9,
        )
    if verdict.origin is not None:
        _place_and_source(page, verdict, verdict.origin)
    _why(page, verdict)
    if verdict.root is not None and verdict.confidence != "ambiguous":
        _root(page, verdict, verdict.root)
    _candidates(page, verdict)
    _chain(page, verdict)
    context.add(page, verdict)
    return page


def _can_unicode(file: TextIO) -> bool:
    try:
        "—…×".encode(getattr(file, "encoding", None) or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _headline(page: Page, verdict: Verdict) -> None:
    call = verdict.call
    page.write(
        ("error: ", "bold red"),
        (f"{calls.text(call)} = -1 {call.errno}", _HEAD),
        (f" — {words.reason(verdict)}", _HEAD),
        hang=7,
    )


def _place_and_source(page: Page, verdict: Verdict, origin: Origin) -> None:
    if verdict.confidence == "ambiguous" and verdict.candidates:
        return  # each candidate has its own place, source and path
    _arrow(page, origin, verdict.conditions[-1] if verdict.conditions else None)
    elsewhere = [_spot(c.conditions, c.origin) for c in verdict.candidates]
    if verdict.root is not None:
        elsewhere.append(_spot(verdict.root.conditions, verdict.root))
    mine = _spot(verdict.conditions, origin)
    shown = [
        e
        for e in verdict.source
        if _holds(e, mine) or not any(_holds(e, spot) for spot in elsewhere)
    ]
    if shown:
        _excerpts(page, shown, origin.file)
    elif verdict.path:
        excerpt.instructions(page, verdict.path, origin.function)
        _legend(page, [i.kind for i in verdict.path], "    ")


def _arrow(page: Page, origin: Origin | Root, last: Condition | None) -> None:
    """``--> file:line in function()``: where the deciding condition is."""
    offset = f"{origin.function}+{origin.offset}" if origin.offset else None
    where = words.place(origin.file, origin.line, offset)
    if last is not None and (last.line or last.offset):
        where = words.place(last.file, last.line, last.offset)
    names = list(dict.fromkeys([*origin.inlined, origin.function]))
    inside = f"{names[0]}()" + "".join(f", inlined into {name}()" for name in names[1:])
    if origin.module:
        inside += f", module {origin.module}"
    page.write(("  --> ", "blue"), (where, _PLACE), (f" in {inside}", ""), hang=6)


def _excerpts(page: Page, excerpts: Sequence[Excerpt], file: str | None) -> None:
    digits = max(map(excerpt.digits, excerpts))
    bar = (" " * (digits + 3) + "|", "blue")
    page.raw(bar)
    for number, part in enumerate(excerpts):
        if part.file != file:
            page.write(("  ::: ", "blue"), (part.file, _PLACE), hang=6)
        elif number:
            page.raw(("   ...", "blue"))
        excerpt.draw(page, part, digits)
        file = part.file
    page.raw(bar)
    _legend(page, [mark.kind for part in excerpts for mark in part.marks], "     ")


def _legend(page: Page, kinds: Sequence[object], indent: str) -> None:
    signs = excerpt.legend([kind for kind in excerpt.SIGNS if kind in kinds])
    if signs:
        page.raw((indent + "= " + signs, "dim"))


def _spot(conditions: Sequence[Condition], origin: Origin | Root) -> tuple[str | None, int | None]:
    last = conditions[-1] if conditions else None
    return (last.file, last.line) if last and last.line else (origin.file, origin.line)


def _holds(part: Excerpt, spot: tuple[str | None, int | None]) -> bool:
    file, line = spot
    return (
        part.file == file and line is not None and part.first <= line < part.first + len(part.lines)
    )


def _why(page: Page, verdict: Verdict) -> None:
    if verdict.confidence == "ambiguous":
        shared = [c for c in verdict.conditions if _certain(c, verdict.candidates)]
        if shared:
            page.heading("what is certain:")
            conditions(page, shared)
    elif verdict.conditions:
        page.heading("why:")
        conditions(page, verdict.conditions, verdict.origin.statement if verdict.origin else None)


def _certain(condition: Condition, candidates: Sequence[Candidate]) -> bool:
    """Whether every candidate goes through this condition, the same way."""
    place = (condition.file, condition.line, condition.text, condition.taken)
    return all(
        any(place == (c.file, c.line, c.text, c.taken) for c in candidate.conditions[:-1])
        for candidate in candidates
    )


def conditions(
    page: Page,
    chain: Sequence[Condition],
    statement: Statement | None = None,
    *,
    functions: bool = False,
) -> None:
    """A numbered chain of branches with their values, and the ``statement`` they led to.

    With ``functions`` it is told which one each is in, where nothing else does.
    """
    file = chain[-1].file if chain else None
    inside: tuple[str | None, str | None] = (None, None)
    for number, condition in enumerate(chain, 1):
        if functions and condition.file and inside != (condition.file, condition.function):
            inside = (condition.file, condition.function)
            file = condition.file
            page.write((f"  in {condition.function}(), ", ""), (condition.file, _PLACE), hang=4)
        where = f"line {condition.line}" if condition.line else condition.offset or ""
        if condition.line and condition.file and condition.file != file:
            where = f"{condition.file}:{condition.line}"
        lead = f"  {number}. " if len(chain) > 1 else "  "
        page.write(
            (lead, "blue"),
            (f"{where}: " if where else "", "dim"),
            (words.truth(condition, whole=True), _HEAD if number == len(chain) else ""),
            hang=len(lead) + 2,
        )
        if condition.atom and condition.atom != condition.text:
            page.write((f"it turned on: {condition.atom}", ""), indent=len(lead) + 2)
        held = words.held(condition)
        if held:
            page.write((f"that is: {held}", ""), indent=len(lead) + 2, hang=len(lead) + 4)
        _operands(page, condition, len(lead) + 2)
    leads = (chain[-1].statement if chain else None) or statement
    if leads is not None:
        text = " ".join(leads.text.split())
        so = f"so line {leads.line}: " if leads.line else "so: "
        page.write((f"  {so}", "dim"), (text, _HEAD), hang=6)


def _operands(page: Page, condition: Condition, indent: int) -> None:
    """What was compared, and where each value came from; a mere constant stands in the source."""
    for operand in condition.operands:
        if operand.expr != operand.value and words.named(operand.expr):
            page.write(
                (f"{operand.expr} = {operand.value}", ""),
                (f" ({operand.source})", "dim"),
                indent=indent,
                hang=indent + 2,
            )


def _root(page: Page, verdict: Verdict, root: Root) -> None:
    page.heading(
        "root:",
        f" the refusal began as {root.errno}, replaced on its way by {verdict.call.errno}",
    )
    _arrow(page, root, root.conditions[-1] if root.conditions else None)
    spot = _spot(root.conditions, root)
    mine = _spot(verdict.conditions, verdict.origin) if verdict.origin else (None, None)
    shown = [e for e in verdict.source if _holds(e, spot) and not _holds(e, mine)]
    if shown:
        _excerpts(page, shown, root.file)
    conditions(page, root.conditions, root.statement)


def _candidates(page: Page, verdict: Verdict) -> None:
    if not verdict.candidates:
        return
    title = "candidates:" if verdict.confidence == "ambiguous" else "also possible:"
    page.heading(title, " one of these; nothing that was recorded tells which")
    for number, candidate in enumerate(verdict.candidates, 1):
        _candidate(page, verdict, number, candidate)
    probes = list(dict.fromkeys(c.probe for c in verdict.candidates if c.probe))
    page.blank()
    page.write(
        ("to settle it: ", _HEAD),
        ("run the same command again with --repeat 2: the second failure is watched by ", ""),
        (words.count(len(probes), "probe") if probes else "probes", ""),
        (f" at {', '.join(probes)}" if probes else " where the candidates differ", ""),
        hang=2,
    )


def _candidate(page: Page, verdict: Verdict, number: int, candidate: Candidate) -> None:
    page.blank()
    last = candidate.conditions[-1] if candidate.conditions else None
    page.write(
        (f"  ({number}) ", "bold yellow"),
        (words.truth(last) if last else f"{candidate.origin.function}()", _HEAD),
        hang=6,
    )
    page.write(
        ("      --> ", "blue"),
        (words.candidate_place(candidate), _PLACE),
        (f" in {candidate.origin.function}()", ""),
        hang=10,
    )
    spot = _spot(candidate.conditions, candidate.origin)
    for part in verdict.source:
        if _holds(part, spot):
            inner = Page(width=page.width - 4)
            excerpt.draw(inner, part, excerpt.digits(part))
            page.lines += [[("    ", ""), *line] for line in inner.lines]
    statement = (last.statement if last else None) or candidate.origin.statement
    if statement is not None:
        page.write((f"leads to: {statement.text}", ""), indent=6, hang=8)
    if last is not None:
        _operands(page, last, 6)
    if candidate.why:
        page.write((candidate.why, ""), indent=6)


def _chain(page: Page, verdict: Verdict) -> None:
    chain = _shared_chain(verdict)
    if not chain:
        return
    page.heading("how it reached the caller:")
    names = [f"{clean(link.function)}()" for link in chain]
    wide = min(max(map(len, names)), 36)
    for name, link in zip(names, chain, strict=True):
        _chain_link(page, name, wide, link)
    call = verdict.call
    page.write(
        (f"  {call.comm}", ""),
        (f" (process {call.pid}" + (f", thread {call.tid})" if call.tid != call.pid else ")"), ""),
        (f" got -1, errno {call.errno} ({-call.ret})", ""),
        hang=4,
    )


def _shared_chain(verdict: Verdict) -> Sequence[ChainLink]:
    """The chain, or its upper part that all candidates share."""
    chain = list(verdict.chain)
    for candidate in verdict.candidates if verdict.confidence == "ambiguous" else ():
        other = [link.function for link in candidate.chain] or [link.function for link in chain]
        shared = 0
        for mine, theirs in zip(reversed(chain), reversed(other), strict=False):
            if mine.function != theirs:
                break
            shared += 1
        chain = chain[len(chain) - shared :]
    return chain


def _chain_link(page: Page, name: str, wide: int, link: ChainLink) -> None:
    said = words.returned(link)
    where = words.place(link.file, link.line)
    if len(name) > wide:
        page.write((name, ""), indent=2)
        name = ""
    if where and 2 + wide + 2 + len(said) + 2 + len(where) > page.width:
        where = where.rsplit("/", 1)[-1]
    page.write((f"  {name:<{wide}}", ""), (f"  {said}", "red"), (f"  {where}", "dim"), hang=6)
    if link.note:
        page.write((link.note, ""), indent=6)
