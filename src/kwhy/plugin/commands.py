"""What the drgn shell's commands do: a question to kwhy's own analysis, and its report."""

import argparse
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from drgn.commands import CommandArgumentError, CommandError

from kwhy.case.evidence import Evidence
from kwhy.diagnose.call import Question, explain
from kwhy.diagnose.hang.detail import told
from kwhy.diagnose.hang.memory import Memory
from kwhy.diagnose.hang.tasks import Tasks
from kwhy.diagnose.listing import listing
from kwhy.emulate.call import Caller
from kwhy.emulate.expression import parse_expression
from kwhy.errors import KwhyError
from kwhy.kernel.model import Kernel
from kwhy.plugin.session import again, kernel_of, shell_variables
from kwhy.report import call as call_report
from kwhy.report import hang as hang_report
from kwhy.report import listing as listing_report
from kwhy.report.page import Page
from kwhy.report.terminal import display
from kwhy.verdict.call import CallVerdict
from kwhy.verdict.hang import Task

_AROUND = 12
_ATTEMPTS = 3
_OPTION = re.compile(r"\s*(--(?:cpu|task|around)(?:\s+|=)[^\s(]+|--?[a-z]\w*)(?=\s|$)")
_PLACE = re.compile(r"([A-Za-z_][\w.]*)(?:\+(0x[0-9a-fA-F]+|\d+))?")


def call(
    program: Any,
    line: str,
    variables: Mapping[str, Any],
    parser: argparse.ArgumentParser,
    why: bool = False,
) -> Any:
    """Run and print; the result as an object of ``program``, None where it cannot be one."""
    options = _parsed(parser, line)
    try:
        kernel = kernel_of(program)
        question = Question(
            options.call,
            syscall=options.syscall,
            cpu=options.cpu,
            task=options.task,
            why=why or getattr(options, "why", False),
            trace=options.trace,
        )
        verdict = explain(kernel, question, partial(again, kernel), shell_variables(variables))
    except KwhyError as error:
        raise CommandError(str(error)) from None
    display(partial(call_report.render, verdict))
    return _result(program, verdict)


def _result(program: Any, verdict: CallVerdict) -> Any:
    import drgn

    ret = verdict.ret
    if ret is None:
        return None
    try:
        return drgn.Object(program, ret.type, int(ret.value, 0))
    except LookupError:  # no debug symbols: the address is worth something all the same
        return drgn.Object(program, "void *", int(ret.value, 0)) if ret.type[-1] == "*" else None
    except (SyntaxError, TypeError, ValueError):
        return None


def dis(
    program: Any, line: str, variables: Mapping[str, Any], parser: argparse.ArgumentParser
) -> None:
    """Disassemble a function, or the surroundings of an address."""
    options = _parsed(parser, line)
    try:
        kernel = kernel_of(program)
        address = _address(kernel, options.place, variables)
        found = listing(kernel, address)
    except KwhyError as error:
        raise CommandError(str(error)) from None
    around = options.around
    if around is None and address != found.symbol.address:
        around = _AROUND
    files = {row.frames[0].file for row in found.rows if row.frames}
    texts = {file: (kernel.source(file) or "").split("\n") for file in files}
    display(lambda width: listing_report.render(found, texts, around, width))


def _address(kernel: Kernel, place: str, variables: Mapping[str, Any]) -> int:
    """The address of ``FUNCTION``, ``FUNCTION+OFFSET`` or of what an expression points to."""
    match = _PLACE.fullmatch(place)
    if match is not None and (found := [s for s in kernel.symbols.named(match[1]) if s.code]):
        return found[0].address + int(match[2] or "0", 0)
    caller = Caller(kernel, given=shell_variables(variables))
    value = parse_expression(place, caller.names(caller.scene()))
    if value.type_.kind.name == "FUNCTION":
        return int(value.address_)
    return int(value.value_())


def args(program: Any, pid: int) -> None:
    """The stack of a task that sleeps, each frame with the arguments of its call."""
    try:
        task, still = _asleep(program, pid)
    except KwhyError as error:
        raise CommandError(str(error)) from None

    def draw(width: int) -> Page:
        page = Page(width=width)
        page.write((f"{task.tid} {task.comm}", "bold"), (f" ({task.state})", ""))
        hang_report.stack(page, task)
        if not task.stack:
            page.write(("it runs, or its stack cannot be read", ""), indent=2)
        elif not still:
            page.write(("note: it ran while its stack was read", ""), indent=2)
        return page

    display(draw)


def _asleep(program: Any, pid: int) -> tuple[Task, bool]:
    """A task as one look showed it, and whether it had not run by the end of that look."""
    for _attempt in range(_ATTEMPTS):
        kernel = kernel_of(program)
        task = told(kernel, pid)
        fresh = again(kernel)
        if fresh is None or _switches(kernel, kernel.evidence, pid) == _switches(
            kernel, fresh, pid
        ):
            return task, True
    return task, False


def _switches(kernel: Kernel, evidence: Evidence, pid: int) -> int | None:
    task = Tasks(Memory(kernel, evidence)).by_tid.get(pid)
    return None if task is None else task.switches


def _parsed(parser: argparse.ArgumentParser, line: str) -> argparse.Namespace:
    """Leading options, and the rest as it is: a C expression has signs that a shell would eat."""
    words: list[str] = []
    rest = line
    while match := _OPTION.match(rest):
        words += match[1].replace("=", " ").split()
        rest = rest[match.end() :]
    rest = rest.strip()
    try:
        return parser.parse_args([*words, "--", rest] if rest else words)
    except SystemExit:  # argparse's own way to end
        raise CommandArgumentError from None
