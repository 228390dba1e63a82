"""The answer of ``kwhy call`` for a person: the value, why, what was written, how far it came."""

from typing import Final

from kwhy.report import context, terminal, words
from kwhy.report.page import Page
from kwhy.verdict.call import CallVerdict

_SURE: Final = {
    "observed": "the function ran to its end",
    "deduced": "the function ran to its end",
    "ambiguous": "two readings of the target gave two results",
    "unknown": "it did not come to its end",
}
_BRANCHES: Final = 16  # that are printed; JSON has them all
_WRITES: Final = 20  # that are printed; JSON has them all
_LINES: Final = 2000


def render(verdict: CallVerdict, width: int = terminal.WIDTH) -> Page:
    """The report as a page of ``width`` columns."""
    page = Page(width=max(40, width))
    _headline(page, verdict)
    for out in verdict.outs:
        page.write(
            (f"{out.name} = ", ""), (out.value, "bold"), (f"  ({out.type})", "dim"), indent=2
        )
    if verdict.because:
        hidden = len(verdict.because) - _BRANCHES
        rest = f" the last {_BRANCHES} branches; {hidden} before them: --json" if hidden > 0 else ""
        page.heading("why:", rest)
        terminal.conditions(page, verdict.because[-_BRANCHES:], functions=True)
    _writes(page, verdict)
    _trace(page, verdict)
    _sure(page, verdict)
    return page


def _headline(page: Page, verdict: CallVerdict) -> None:
    call = f"{verdict.call.function}({', '.join(verdict.call.args)})"
    if verdict.call.syscall:
        call = f"{verdict.call.syscall}({', '.join(verdict.call.args)})"
    if verdict.executed.reason is not None:
        page.write(
            ("call: ", "bold yellow"),
            (f"{call} cannot go further: {verdict.executed.reason}", "bold"),
            hang=6,
        )
        page.write(("  --> ", "blue"), (verdict.executed.stopped_at or "", "cyan"), hang=6)
        return
    page.write(("call: ", "bold green"), (f"{call} = ", "bold"), *_value(verdict), hang=6)


def _value(verdict: CallVerdict) -> list[tuple[str, str]]:
    ret = verdict.ret
    if ret is None:
        return [("void", "bold")]
    text = f" {ret.text}" if ret.text else ""
    return [(ret.value + text, "bold"), (f"  ({ret.type})", "dim")]


def _writes(page: Page, verdict: CallVerdict) -> None:
    if not verdict.writes:
        return
    page.heading("it would write:", " in the copy only; the target is unchanged")
    for write in verdict.writes[:_WRITES]:
        page.write(
            (f"{write.expr}: ", ""), (f"{write.before} -> {write.after}", "bold"),
            (f"  ({words.count(write.size, 'byte')} at {write.address})", "dim"), indent=2, hang=4,
        )  # fmt: skip
    if len(verdict.writes) > _WRITES:
        page.write((f"and {len(verdict.writes) - _WRITES} more; --json has them", "dim"), indent=2)


def _trace(page: Page, verdict: CallVerdict) -> None:
    if not verdict.trace:
        return
    page.heading("executed:")
    for line in verdict.trace[:_LINES]:
        pad = "  " * (line.depth + 1)
        times = f"  x{line.count}" if line.count > 1 else ""
        page.raw(
            (pad, ""), (line.where, "cyan"), (f"  {line.text}", ""), (f"  {line.values}", "dim"),
            (times, "dim"),
        )  # fmt: skip
    if len(verdict.trace) > _LINES:
        page.write((f"and {len(verdict.trace) - _LINES} more; --json has them", "dim"), indent=2)


def _sure(page: Page, verdict: CallVerdict) -> None:
    done = verdict.executed
    page.heading("how sure:", f" {verdict.confidence}, {_SURE[verdict.confidence]}")
    page.write(
        (f"executed: {words.count(done.instructions, 'instruction')} in "
         f"{words.count(done.blocks, 'block')}, {words.count(done.pages, 'page')} of memory", ""),
        indent=2, hang=4,
    )  # fmt: skip
    if done.skipped:
        page.write((f"left out: {', '.join(done.skipped)}", ""), indent=2, hang=4)
    context.add_ground(page, verdict.kernel, verdict.evidence)
