"""Why a system call failed: from one recorded call to a verdict."""

from collections.abc import Sequence
from dataclasses import replace

from kwhy import arch as architectures
from kwhy.diagnose.again import Again, Held, execute
from kwhy.diagnose.analysis import Analysis, analyse, probe_addresses, probed
from kwhy.diagnose.cases import Case, cases_of
from kwhy.diagnose.describe import Describer
from kwhy.diagnose.words import Words
from kwhy.flow.cfg import Code
from kwhy.kernel.model import Kernel
from kwhy.record.errno import errno_name
from kwhy.record.model import SyscallRecord
from kwhy.verdict import Candidate, FailedCall, KernelId, OtherFailure, Verdict
from kwhy.verdict import Evidence as Account
from kwhy.verdict.common import doubt, noted

MAX_CANDIDATES = 32
LOOSE = (
    "the call was executed again offline, which does not count: what decided there lies where the "
    "execution is not compared with the recording"
)


TRACED = (
    "kwhy itself traces the tasks of the command, to keep them at their exits: a PTRACE_TRACEME or "
    "PTRACE_ATTACH of one fails for this reason alone"
)


def explain_call(
    kernel: Kernel,
    record: SyscallRecord,
    *,
    code: Code | None = None,
    probes: dict[str, int] | None = None,
    held: Held | None = None,
    traced: bool = False,
    account: Account | None = None,
    others: Sequence[OtherFailure] = (),
    kmsg: Sequence[str] = (),
) -> tuple[Verdict, Analysis]:
    """The verdict on one recorded call, and the analysis behind it.

    ``held``: its process is (was, when the memory of a case was read) kept at its exit: then a call
    whose recording leaves more than one candidate is executed again. ``traced``: the agent traced
    the tasks of the command.
    """
    arch = architectures.of(kernel.arch)
    code = code or Code(kernel, arch)
    base = _base(kernel, record, account or Account(rounds=1), others, kmsg)
    if traced and record.name == "ptrace":
        base = noted(base, TRACED)
    first = analyse(kernel, arch, code, record, probed(code, record, probes or {}))
    verdict = _verdict(kernel, base, first)
    if held is None or not _leaves_open(verdict) or record.entry is None:
        return verdict, first
    again = execute(kernel, code, record, probe_addresses(first.findings), held)
    if isinstance(again, Again):
        second = analyse(kernel, arch, code, again.record, again.watched)
        settled = _verdict(kernel, base, second)
        if not again.proves(second):
            return noted(verdict, LOOSE), first
        if _surer(settled, verdict):
            account = replace(settled.evidence, emulated=again.instructions)
            return noted(replace(settled, evidence=account), again.note), second
        note = "the call was executed again offline; that left as many candidates"
        return noted(verdict, note), first
    return noted(verdict, again.note), first


def _leaves_open(verdict: Verdict) -> bool:
    return verdict.confidence in ("ambiguous", "unknown")


def _surer(verdict: Verdict, than: Verdict) -> bool:
    """Whether a verdict leaves less open than another."""
    left, left_before = (
        (doubt(each.confidence), len(each.candidates)) for each in (verdict, than)
    )
    return left < left_before


def _verdict(kernel: Kernel, base: Verdict, analysis: Analysis) -> Verdict:
    """What an analysis says of the failure."""
    words = Words(kernel, analysis.tracer, analysis.tracer.code.arch)
    cases = cases_of(kernel, words, analysis.findings)
    notes = [*base.evidence.notes, *analysis.record.notes, *analysis.notes, *kernel.notes]
    if analysis.record.lost:
        notes.append("events were lost while this call ran: its path may be incomplete")
    base = replace(base, evidence=replace(base.evidence, notes=tuple(dict.fromkeys(notes))))
    if not cases:
        return base
    describe = Describer(kernel, words, analysis)
    if len(cases) > 1:
        return _ambiguous(base, describe, cases)
    return describe.verdict(base, cases[0])


def _base(
    kernel: Kernel,
    record: SyscallRecord,
    account: Account,
    others: Sequence[OtherFailure],
    kmsg: Sequence[str],
) -> Verdict:
    """The verdict when nothing is known of the reason."""
    call = _failed_call(record)
    missing = record.entry is None and call.errno == "ENOSYS"
    return Verdict(
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


def _failed_call(record: SyscallRecord) -> FailedCall:
    return FailedCall(
        pid=record.pid,
        tid=record.tid,
        comm=record.comm,
        syscall=record.name,
        args=tuple(f"{a & ((1 << 64) - 1):#x}" for a in record.args),
        ret=record.ret,
        errno=errno_name(record.ret) or str(record.ret),
        barred=record.barred and record.entry is None,
    )


def _ambiguous(base: Verdict, describe: Describer, cases: list[Case]) -> Verdict:
    candidates = []
    for case in cases[:MAX_CANDIDATES]:
        part = describe.verdict(base, case)
        assert part.origin is not None
        own = [d.address for _, d in case.edges if d.kind in ("branch", "select")]
        addresses = own or probe_addresses([case.finding])
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
