"""Why a system call failed: from one recorded call to a verdict."""

from collections.abc import Sequence
from dataclasses import replace

from kwhy import arch as architectures
from kwhy.diagnose.analysis import Analysis, analyse, probe_addresses
from kwhy.diagnose.cases import Case, cases_of
from kwhy.diagnose.describe import Describer
from kwhy.diagnose.words import Words
from kwhy.flow.cfg import Code
from kwhy.kernel.model import Kernel
from kwhy.record.errno import errno_name
from kwhy.record.model import SyscallRecord
from kwhy.verdict import Candidate, FailedCall, KernelId, OtherFailure, Verdict
from kwhy.verdict import Evidence as Account

MAX_CANDIDATES = 32


def explain_call(
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
    cases = cases_of(kernel, words, analysis.findings)
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
    describe = Describer(kernel, words, analysis)
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
