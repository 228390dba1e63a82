"""Record the cases of this directory again: `python record.py CASE.kwhy INCIDENT SERIES OUT.json`.

CASE is what `kwhy fail --lab SERIES --save CASE ...` kept of an incident of the lab. Only what the
analysis asks of the kernel is recorded: code, names and exception table of the functions it looks
at, the calls that the tracer saw, and which source condition each deciding branch belongs to.
"""

import base64
import json
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kwhy.arch import Arch
from kwhy.case.casefile import CaseFile
from kwhy.diagnose import analysis, rounds
from kwhy.diagnose.sites import following, instead, locate
from kwhy.diagnose.truth import held
from kwhy.flow.cfg import Code, Function, base_name
from kwhy.flow.decide import Passing
from kwhy.flow.explore import Decision, Node
from kwhy.flow.origin import Finding, Tracer
from kwhy.kernel.model import Kernel
from kwhy.record.model import Call, SyscallRecord

KERNEL_TEXT = 0xFFFFFFFF80000000


class Asked:
    """A kernel that keeps what was asked of it."""

    trace_sites: frozenset[int] | None = None

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.symbols = self
        self.memory: dict[int, bytes] = {}
        self.named: dict[int, tuple[str, int]] = {}
        self.faults: dict[int, list[Any]] = {}

    def at(self, address: int) -> Any:
        found = self.kernel.symbols.at(address)
        if found is not None:
            self.named[found.address] = (found.name, found.size)
        return found

    def code(self, address: int, size: int) -> bytes:
        data = self.kernel.code(address, size)
        kept = data
        if (size >= 512 and self.kernel.symbols.at(address) is None) or size == 8192:
            end = 0  # a jump table: as far as it holds addresses of code
            while int.from_bytes(data[end : end + 8], "little") >= KERNEL_TEXT:
                end += 8
            kept = data[:end]
        if len(kept) > len(self.memory.get(address, b"")):
            self.memory[address] = kept
        return data

    def prefetch(self, ranges: list[tuple[int, int]]) -> None:
        self.kernel.prefetch(ranges)

    def exception_table(self, start: int, end: int) -> Sequence[Any]:
        found = self.kernel.exception_table(start, end)
        for e in found:
            self.faults[e.insn] = [e.insn, e.fixup, e.kind, e.register, e.imm]
        return found


def main() -> None:
    """Analyse the case as `kwhy explain` does and write down what that took."""
    case, incident, series, out = sys.argv[1:]
    session = rounds.open_session(CaseFile(Path(case)))
    index, chosen, _ = rounds._first(session)
    record = session.recording(index).syscall(chosen.index)
    kernel, arch = session.kernel, session.code.arch
    asked = Asked(kernel)
    code = Code(asked, arch)
    arity: dict[str, int] = {}
    booleans: set[str] = set()
    passed: dict[tuple[int, bool], Passing] = {}
    tracer, findings = analysed(kernel, arch, code, record, arity, booleans, passed)
    sites = {}
    for finding in findings:
        for node, decision in finding.deciding:
            site = locate(kernel, decision.address)
            function = finding.frame.function
            after = [n.segment.start for n in following(node, decision)]
            truth = held(kernel, site, decision, after, instead(function, node, decision))
            sites[f"{decision.address:#x} {decision.taken}"] = [
                site.function, site.condition.text if site.condition else "", truth,
            ]  # fmt: skip
    assert record.entry is not None
    seen = None if tracer.oracle else {id(call) for call, _, _ in tracer.frames.values()}
    calls = tree(record.entry, seen)
    data = {
        "incident": incident,
        "series": series,
        "release": kernel.release,
        "oracle": tracer.oracle,
        "syscall": record.name,
        "args": [f"{a & (1 << 64) - 1:#x}" for a in record.args],
        "ret": record.ret,
        "sites": sites,
        "passed": [[f"{a:#x}", t, kind] for (a, t), kind in sorted(passed.items())],
        "arity": dict(sorted(arity.items())),
        "booleans": sorted(booleans),
        "symbols": [[n, f"{a:#x}", s] for a, (n, s) in sorted(asked.named.items())],
        "faults": [e for _, e in sorted(asked.faults.items())],
        "calls": calls,
        "code": {
            f"{a:#x}": base64.b64encode(zlib.compress(b, 9)).decode()
            for a, b in sorted(needed(asked.memory).items())
        },
    }
    Path(out).write_text(json.dumps(data, indent=0, separators=(",", ":")) + "\n")


def analysed(
    kernel: Kernel,
    arch: Arch,
    code: Code,
    record: SyscallRecord,
    arity: dict[str, int],
    booleans: set[str],
    passed: dict[tuple[int, bool], Passing],
) -> tuple[Tracer, list[Finding]]:
    """`diagnose.analysis.analyse`, keeping what types and source said."""
    assert record.entry is not None

    def tracer(oracle: bool) -> Tracer:
        made = analysis._tracer(kernel, code, {}, frozenset(), oracle)
        count, boolean, passing = made.arity, made.returns_bool, made.decider.passing
        assert count and boolean and passing

        def counted(address: int) -> int | None:
            found = count(address)
            if found is not None:
                arity[base_name(code.name(address))] = found
            return found

        def said(address: int) -> bool:
            found = boolean(address)
            if found:
                booleans.add(base_name(code.name(address)))
            return found

        def by(function: Function, node: Node, decision: Decision, want: int) -> Passing | None:
            found = passing(function, node, decision, want)
            if found:
                passed[decision.address, decision.taken] = found
            return found

        made.arity, made.returns_bool, made.decider.passing = counted, said, by
        return made

    one = tracer(False)
    findings = analysis._trace(arch, one, record, record.entry)
    if len(findings) != 1 or len(findings[0].deciding) > 1:
        two = tracer(True)
        better = analysis._trace(arch, two, record, record.entry)
        if better:
            return two, better
    return one, findings


def tree(call: Call, seen: set[int] | None) -> list[Any]:
    """A call as [function, site, kind, children]; below those not in ``seen`` nothing is kept.

    Equal calls in a row, as loops make them, are one with a count behind.
    """
    out: list[Any] = []
    for child in call.children if seen is None or id(call) in seen else ():
        item = tree(child, seen)
        if out and out[-1][:4] == item[:4]:
            out[-1][4] += 1
        else:
            out.append(item)
    site = f"{call.site:#x}" if call.site else None
    return [f"{call.function:#x}", site, call.kind, out, 1]


def needed(memory: dict[int, bytes]) -> dict[int, bytes]:
    """Without the pieces that lie inside others."""
    out: dict[int, bytes] = {}
    end = 0
    for address, data in sorted(memory.items(), key=lambda item: (item[0], -len(item[1]))):
        if data and address + len(data) > end:
            out[address] = data
            end = address + len(data)
    return out


if __name__ == "__main__":
    main()
