"""What a kernel function returns, and why: from evidence and a question to a verdict."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kwhy.case.evidence import PAGE, Evidence, MissingMemory
from kwhy.diagnose.errors import made
from kwhy.diagnose.executed import MAX_LINES, conditions, trace
from kwhy.diagnose.moving import reread
from kwhy.diagnose.shown import made_for, out, shown
from kwhy.diagnose.words import number
from kwhy.emulate.call import Caller, NoArgument, Outcome
from kwhy.emulate.passing import Passed
from kwhy.emulate.scene import KernelScene
from kwhy.emulate.slice import decided
from kwhy.emulate.syscall import dry_run
from kwhy.errors import UsageError
from kwhy.flow.cfg import Code
from kwhy.kernel.model import Kernel
from kwhy.verdict import Evidence as Account
from kwhy.verdict import KernelId
from kwhy.verdict.call import Called, CallVerdict, Executed, Out, Value, Write
from kwhy.verdict.common import noted

MAX_WRITES = 200
_READINGS = 3
_ASTRAY = ("fault", "exception", "bound")
OFFLINE = "executed offline, on copies of the target's memory: nothing ran on the target"
CUT = f"the list of what was executed ends after {MAX_LINES:,} lines"


@dataclass(frozen=True, slots=True)
class Question:
    """``text`` is ``FUNC(ARG, ...)``, of a system call with ``syscall``.

    ``task`` is a process number, None for the CPU's own task.
    """

    text: str
    syscall: bool = False
    cpu: int = 0
    task: int | None = None
    why: bool = False
    trace: bool = False


def explain(
    kernel: Kernel,
    question: Question,
    again: Callable[[], Evidence | None],
    given: Callable[[Any, str], Any] = lambda _program, _name: None,
) -> CallVerdict:
    """Run the call and tell what came of it.

    ``again`` reads a live target once more (None: it stands still), ``given`` is Caller's. Raises
    UsageError for a call that cannot be made.
    """
    for reading in range(_READINGS):
        caller = Caller(kernel, question.cpu, question.task, given)
        last = reading == _READINGS - 1
        try:
            outcome = _run(caller, question)
        except NoArgument as error:
            if error.end.kind not in _ASTRAY or last or not reread(kernel):
                raise
            continue
        # Of a kernel that goes on, what was read page after page is seldom all of one moment, and
        # code that finds a list half changed goes astray: never the answer if there is a better.
        if outcome.end.kind not in _ASTRAY or last or not reread(kernel):
            break
    verdict = _verdict(caller, question, outcome)
    fresh = again()
    if fresh is not None:
        verdict = _compared(verdict, caller, question, outcome, fresh)
    return verdict


def _run(caller: Caller, question: Question) -> Outcome:
    detail = question.why or question.trace
    if question.syscall:
        return dry_run(caller, question.text, detail=detail)
    return caller.call(question.text, detail=detail)


def _result(question: Question, outcome: Outcome) -> Value | None:
    """What it returned; of a system call -1 is an error too. None for void or no return."""
    if outcome.result is None:
        return None
    if question.syscall:
        return shown(outcome.scene, outcome.result, lambda _number: True)
    places = made_for(outcome.arguments, outcome.outs)
    return shown(outcome.scene, outcome.result, made(outcome.scene.kernel, outcome.insns()), places)


def _verdict(caller: Caller, question: Question, outcome: Outcome) -> CallVerdict:
    kernel, scene = caller.kernel, outcome.scene
    ret = _result(question, outcome)
    name = outcome.function.name
    syscall = question.text.partition("(")[0].strip() if question.syscall else None
    call = f"{syscall or name}({', '.join(p.text for p in outcome.arguments)})"
    if not outcome.returned:
        summary = f"{call} does not return: {outcome.end.reason}"
    elif ret is None:
        summary = f"{call} returns nothing (void)"
    else:
        summary = f"{call} returns {ret.value}" + (f", {ret.text}" if ret.text else "")
    history = None
    if question.why or question.trace:
        history = outcome.history(Code(kernel, caller.arch))
    ran = trace(kernel, history) if question.trace and history else ()
    cut = [CUT] if len(ran) == MAX_LINES else []
    notes = [OFFLINE, *scene.notes, *_unwritten(outcome), *cut, *kernel.notes]
    return CallVerdict(
        summary=summary,
        confidence="observed" if outcome.returned else "unknown",
        kernel=KernelId(release=kernel.release, build_id=kernel.build_id, arch=kernel.arch),
        evidence=Account(emulated=outcome.instructions, notes=tuple(dict.fromkeys(notes))),
        call=Called(
            function=name,
            args=tuple(p.text for p in outcome.arguments),
            values=tuple(f"{p.value:#x}" for p in outcome.arguments),
            cpu=question.cpu,
            pid=question.task,
            syscall=syscall,
        ),
        ret=ret,
        because=conditions(kernel, history, decided(history)) if question.why and history else (),
        executed=Executed(
            instructions=outcome.instructions,
            pages=outcome.pages,
            blocks=len(scene.machine.track.addresses),
            stopped_at=None if outcome.returned else scene.where(outcome.end.address),
            reason=None if outcome.returned else outcome.end.reason,
            skipped=tuple(scene.skipped),
        ),
        outs=_outs(outcome),
        writes=_writes(caller, outcome),
        trace=ran,
    )


def _unwritten(outcome: Outcome) -> list[str]:
    """A name that is mistyped becomes an out-parameter, to which often nothing is written."""
    return [
        f"nothing in the kernel is called {o.name}: memory was made for it, and nothing but zeros "
        "is in there after the call"
        for o in outcome.outs
        if not any(o.object.to_bytes_())
    ]


def _outs(outcome: Outcome) -> tuple[Out, ...]:
    scene = outcome.scene
    is_error = made(scene.kernel, outcome.insns())
    places = made_for(outcome.arguments, outcome.outs)
    return tuple(out(scene, o.name, o.object, is_error, places) for o in outcome.outs)


# -- writes ----------------------------------------------------------------------------------------


def _writes(caller: Caller, outcome: Outcome) -> tuple[Write, ...]:
    places = _objects(caller, outcome.arguments, outcome.scene)
    before = {
        change.address + at: byte
        for change in outcome.changes
        for at, byte in enumerate(change.before)
    }
    out: dict[int, Write] = {}
    for change in outcome.changes:
        at, end = change.address, change.address + len(change.after)
        while at < end:
            start, size, expr = _name(caller.kernel, at, places, outcome.scene)
            if start not in out:
                out[start] = _write(outcome.scene, start, size, expr, before)
            at = start + size
            if len(out) >= MAX_WRITES:
                return tuple(out.values())
    return tuple(out.values())


def _write(
    scene: KernelScene, start: int, size: int, expr: str, before: dict[int, int]
) -> Write:
    """All of a field (or word), whichever of its bytes changed."""
    after = scene.memory.read(start, size)
    old = bytes(before.get(start + at, byte) for at, byte in enumerate(after))
    values = (number(int.from_bytes(data, "little")) for data in (old, after))
    was, now = values
    return Write(address=f"{start:#x}", size=size, expr=expr, before=was, after=now)


_Place = tuple[int, int, str, Any]
"""Address, size, C expression of a pointer to it, type of what it points to."""


def _objects(caller: Caller, arguments: Sequence[Passed], scene: KernelScene) -> list[_Place]:
    """Structures whose place is known: what the arguments point to, and the current task."""
    import drgn

    types = caller.kernel.types
    out: list[_Place] = []
    for passed in arguments:
        kind = passed.type
        while kind is not None and kind.kind == drgn.TypeKind.TYPEDEF:
            kind = kind.type
        if kind is None or kind.kind != drgn.TypeKind.POINTER:
            continue
        found = types.named(kind.type.unqualified().type_name())
        size = types.size(found) if found else None
        if found is not None and size and types.is_struct(found):
            out.append((passed.value, size, passed.text, found))
    task = types.named("struct task_struct")
    size = types.size(task) if task else None
    if task is not None and size:
        out.append((scene.task, size, "current", task))
    return out


def _name(
    kernel: Kernel, address: int, places: Sequence[_Place], scene: KernelScene
) -> tuple[int, int, str]:
    """What a changed byte belongs to: where that begins, its bytes (at most 8), what it is called.

    A field where one is known, else the word around it.
    """
    word = address & -8
    for base, length, text, kind in places:
        if base <= address < base + length:
            found = _field(kernel, kind, address, base)
            if found is not None:
                return found[0], found[1], f"{text}->{found[2]}"
    symbol = kernel.symbols.at(address)
    if symbol is None:
        percpu = kernel.types.percpu((word - scene.percpu) & ((1 << 64) - 1))
        return word, 8, f"{percpu[0]} of CPU {scene.cpu}" if percpu else f"*{word:#x}"
    variable = kernel.types.variable(symbol.name)
    if variable is not None and kernel.types.is_struct(variable):
        found = _field(kernel, variable, address, symbol.address)
        if found is not None:
            return found[0], found[1], f"{symbol.name}.{found[2]}"
    start = max(word, symbol.address)
    inside = start - symbol.address
    return start, word + 8 - start, symbol.name + (f"+{inside:#x}" if inside else "")


def _field(kernel: Kernel, kind: Any, address: int, base: int) -> tuple[int, int, str] | None:
    """The field of a structure at ``base`` that a byte is of; of a long one the word around."""
    found = kernel.types.member(kind, address - base, 1)
    if not found:
        return None
    field = found[0]
    start = base + field.offset
    if field.size > 8:
        at = (address - start) & -8
        return start + at, min(8, field.size - at), f"{field.path}+{at:#x}" if at else field.path
    return start, field.size, field.path


# -- a target that goes on -------------------------------------------------------------------------


def _compared(
    verdict: CallVerdict, caller: Caller, question: Question, outcome: Outcome, fresh: Evidence
) -> CallVerdict:
    """Read the touched pages of a live target again; run again on them when some are others."""
    touched = sorted(outcome.scene.memory.loaded)
    fresh.prefetch([(page, PAGE) for page in touched])
    changed = [
        page for page in touched if _page(fresh, page) != _page(caller.kernel.evidence, page)
    ]
    if not changed:
        note = f"{len(touched)} pages were read twice and were the same"
        return noted(verdict, note)
    told = f"{len(changed)} of {len(touched)} pages changed between two readings"
    try:
        other = _run(caller.on(fresh), question)
    except UsageError as error:
        why = str(error).splitlines()[0]
        note = f"{told}, and with the second the call cannot be made: {why}"
        return replace(noted(verdict, note), confidence="unknown")
    second = _result(question, other)
    same = other.end == outcome.end and second == verdict.ret
    if same:
        return noted(verdict, f"{told}; both give the same result")
    text = second.value if second else f"no result: {other.end.reason}"
    note = f"{told}, and the second gives another result: {text}"
    results = tuple(v for v in (verdict.ret, second) if v is not None)
    if len(results) < 2:
        return replace(noted(verdict, note), confidence="unknown")
    return replace(noted(verdict, note), confidence="ambiguous", candidates=results)


def _page(evidence: Evidence, page: int) -> bytes | None:
    try:
        return evidence.read(page, PAGE)
    except MissingMemory:
        return None
