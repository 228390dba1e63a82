"""The answer of ``kwhy spin`` for a person: the loop, its lines' samples, what ends it."""

from collections.abc import Sequence
from typing import Final

from kwhy.report import context, words
from kwhy.report.page import Page
from kwhy.verdict.spin import Branch, Loop, Operand, SourceLines, Spin

_LABEL: Final[dict[str, tuple[str, str]]] = {
    "endless": ("endless: ", "bold red"),
    "lock": ("lock: ", "bold red"),
    "slow": ("slow: ", "bold yellow"),
    "looping": ("looping: ", "bold yellow"),
}
_STACK: Final = 8


def render(answer: Spin, width: int = 80) -> Page:
    """The report as a page of ``width`` columns (at least 40)."""
    page = Page(width=max(40, width))
    label, style = _LABEL.get(answer.state, (f"{answer.state}: ", "bold"))
    page.write((label, style), (answer.summary, "bold"), hang=len(label))
    if answer.loop is not None:
        _place(page, answer.loop)
        for part in answer.source:
            _source(page, part, answer.loop)
    if answer.ends_when and answer.state != "lock":
        page.heading("it would end when: ", answer.ends_when)
    if answer.recovery:
        page.heading("known to end it:")
        for text in answer.recovery:
            page.write((text, "green"), indent=2, hang=4)
    _lock(page, answer)
    _branches(page, answer.branches)
    _depends(page, answer.operands)
    _calls(page, answer)
    _inside(page, answer)
    _registers(page, answer)
    _stack(page, answer)
    if answer.look:
        page.heading("look further:", " code that samples cannot enter, run offline on its memory")
        for command in answer.look:
            page.write((command, "green"), indent=2, hang=4)
    if answer.advice:
        page.heading("advice:")
        for text in answer.advice:
            page.write((text, ""), indent=2, hang=4)
    _sure(page, answer)
    return page


def _place(page: Page, loop: Loop) -> None:
    where = words.place(loop.file, loop.line, f"{loop.function}{loop.head}")
    page.write(
        ("  --> ", "blue"), (where, "cyan"), (f" in {loop.function}(), loop at {loop.head}", ""),
        hang=6,
    )  # fmt: skip


def _source(page: Page, part: SourceLines, loop: Loop) -> None:
    """The loop's lines marked, the samples of each in the margin."""
    samples = {each.line: each.samples for each in loop.lines if each.file == part.file}
    digits = len(str(part.first + len(part.lines)))
    wide = max(4, len(str(max(samples.values(), default=0))))
    page.raw((" " * (wide + digits + 4) + "|", "blue"))
    for number, text in enumerate(part.lines, part.first):
        inside = number in samples
        count = str(samples[number]) if samples.get(number) else ""
        page.raw(
            (f"{count:>{wide}} ", "magenta"),
            (f"{number:>{digits}} ", "blue"),
            ("* " if inside else "  ", "cyan"),
            ("| ", "blue"),
            (text.expandtabs(8 if page.width > 80 else 4), "" if inside else "dim"),
        )
    page.raw((" " * (wide + digits + 4) + "|", "blue"))
    page.raw((" " * wide + " = samples in the margin   * part of the loop", "dim"))


def _lock(page: Page, answer: Spin) -> None:
    if answer.lock is None:
        return
    lock = answer.lock
    page.heading("the lock:")
    name = lock.name or "a lock without a symbol"
    at = f" at {lock.address}" if lock.address else ""
    page.write((f"{name}{at}, a {lock.kind}, wanted by {lock.wanted_by}()", ""), indent=2, hang=4)
    page.write((lock.holder, ""), indent=2, hang=4)


def _branches(page: Page, branches: Sequence[Branch]) -> None:
    if not branches:
        return
    page.heading("conditions in the loop:")
    for branch in branches:
        went = "both ways" if branch.always is None else f"always {str(branch.always).lower()}"
        where = f"line {branch.line}: " if branch.line else f"{branch.offset}: "
        out = "  (a way out)" if branch.leaves else ""
        page.write(
            (f"  {where}", "dim"), (branch.expr, ""), (f" is {went}", "bold"), (out, "cyan"), hang=6
        )


def _depends(page: Page, operands: Sequence[Operand]) -> None:
    if not operands:
        return
    page.heading("what the way out depends on:")
    for each in operands:
        how = {"constant": "never changed", "cycle": "goes round", "counter": "counts"}
        page.write(
            (f"  {each.expr} = {each.value}", ""),
            (f" ({how.get(each.how, 'changes')}; {each.source})", "dim"),
            hang=6,
        )


def _calls(page: Page, answer: Spin) -> None:
    calls = [call for call in answer.calls if call.ret is not None or call.decides]
    if not calls:
        return
    page.heading("what its callees returned:")
    for call in calls:
        ret = "not seen" if call.ret is None else call.ret
        page.write(
            (f"  {call.function}()", ""), (f" = {ret}", "bold"),
            (" (decides)" if call.decides else "", "cyan"), hang=6,
        )  # fmt: skip


def _inside(page: Page, answer: Spin) -> None:
    if not answer.deep:
        return
    page.heading("inside them:", " executed offline, on the memory that the loop works on")
    if answer.contradiction:
        page.write(("contradiction: ", "bold red"), (answer.contradiction, ""), indent=2, hang=4)
    for each in answer.deep:
        got = f" = {each.ret}" if each.ret is not None else f" did not return: {each.stopped}"
        page.write((f"  {each.call}", "bold"), (got, "bold"), hang=6)
        if not each.agrees:
            page.write(("not what it was seen to return: no answer", "dim"), indent=4, hang=6)
            continue
        for condition in each.because:
            where = words.place(condition.file, condition.line, condition.offset)
            page.write(
                (f"{where}: ", "dim"), (words.truth(condition, whole=True), ""), indent=4, hang=6
            )
            for operand in condition.operands:
                if operand.expr != operand.value and words.named(operand.expr):
                    page.write((f"{operand.expr} = {operand.value}", ""), indent=6, hang=8)


def _registers(page: Page, answer: Spin) -> None:
    known = answer.registers
    if not known.constant and not known.varying:
        return
    page.heading("registers at the loop's head:")
    fixed = ", ".join(f"{name}={value}" for name, value in known.constant.items())
    page.write(("  never change: ", "dim"), (fixed or "none", ""), hang=4)
    page.write(("  change: ", "dim"), (", ".join(known.varying) or "none", ""), hang=4)


def _stack(page: Page, answer: Spin) -> None:
    if len(answer.stack) < 2:
        return
    page.heading("called by:", " none of these returned")
    for frame in answer.stack[1 : 1 + _STACK]:
        where = words.place(frame.file, frame.line)
        page.write((f"  {frame.function}()", ""), (f"  {where}", "dim"), hang=6)


def _sure(page: Page, answer: Spin) -> None:
    thread, loop = answer.thread, answer.loop
    page.heading("how sure:", f" {answer.confidence}, {_meaning(answer)}")
    seen = [words.count(thread.samples, "sample")]
    if thread.user:
        seen.append(f"{thread.user:,} in user space")
    if loop is not None:
        seen.append(f"{loop.samples_inside:,} in the loop, {loop.samples_outside:,} outside")
        hits = {"entry": loop.entry_hits, "head": loop.head_hits, "exits": loop.exit_hits}
        seen += [f"{name}: {words.count(n, 'hit')}" for name, n in hits.items() if n is not None]
    page.write((f"seen: {'; '.join(seen)}", ""), indent=2, hang=4)
    if thread.chosen:
        page.write((f"thread {thread.tid} is {thread.chosen}", ""), indent=2, hang=4)
    context.add_ground(page, answer.kernel, answer.evidence)


def _meaning(answer: Spin) -> str:
    if answer.confidence == "observed":
        return "breakpoints counted the rounds" if answer.loop else "seen while it was watched"
    if answer.confidence == "deduced":
        return "samples tell, but breakpoints could not confirm all of it"
    return "what was seen does not settle it"
