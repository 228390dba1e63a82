"""From a recorded call to a verdict: a toy kernel with a source of twelve lines."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.unit.flow_build import ARCH, GAP, TOY, Machine, recorded, toy

from kwhy.case.evidence import Round
from kwhy.diagnose import rounds
from kwhy.diagnose.analysis import analyse, probe_addresses, probe_definitions, probed
from kwhy.diagnose.fail import explain_call
from kwhy.diagnose.sites import Site, led_to, locate
from kwhy.diagnose.truth import held
from kwhy.errors import NothingToExplain
from kwhy.flow.cfg import Code
from kwhy.flow.explore import Decision
from kwhy.flow.terms import sym
from kwhy.kernel.lines import SourceFrame
from kwhy.kernel.model import Kernel
from kwhy.kernel.source import SourceFile
from kwhy.kernel.types import Member, TypeRef
from kwhy.record.model import Call, ProbeHit, SyscallRecord
from kwhy.verdict import Verdict

NOP = "0f1f440000"
F, G = TOY, TOY + GAP
BRANCH = F + 8
ZF = 1 << 6
SOURCE = """\
/* Refuses odd modes. */
long do_toy(int a0)
{
\tlong ret = 0;
\tif (a0 != 5) {
\t\tret = -EIO;
\t\tgoto out;
\t}
\tret = 0;
out:
\treturn ret;
}
"""
LINES = {F: (2, 1), F + 5: (5, 9), F + 8: (5, 5), F + 0xA: (6, 7), F + 0xF: (11, 9),
         F + 0x10: (9, 6), F + 0x12: (11, 9)}  # fmt: skip


class Lined(Machine):
    """A toy with lines and source (when ``lines``), and types that know only numbers."""

    lines = True
    release, build_id, evidence = "6.12-test", "ab", None

    @property
    def notes(self) -> list[str]:
        """Nothing was missing."""
        return []

    def frames(self, address: int) -> list[Any]:
        """The line of the nearest instruction that has one."""
        near = [a for a in LINES if a <= address < a + 16]
        if not self.lines or not near:
            return []
        line, column = LINES[max(near)]
        return [SourceFrame("do_toy", "fs/toy.c", line, column)]

    def source(self, file: str) -> str | None:
        """The only file."""
        return SOURCE if file == "fs/toy.c" and self.lines else None

    def parsed(self, file: str) -> SourceFile | None:
        """The only file, parsed."""
        return SourceFile(file, SOURCE) if file == "fs/toy.c" and self.lines else None

    def deref(self, _type: TypeRef) -> TypeRef | None:
        """No pointers."""
        return None

    def is_pointer(self, _type: TypeRef) -> bool:
        """No pointers."""
        return False

    def is_signed(self, _type: TypeRef) -> bool:
        """All numbers are."""
        return True

    def enumerators(self, _type: TypeRef) -> dict[int, str]:
        """No enums."""
        return {}

    def member(self, _type: TypeRef, _byte_offset: int, _size: int) -> list[Member]:
        """No structures."""
        return []


def kernel(text: str = f"{NOP} 83ff05 7406 b8fbffffff c3 31c0 c3", lines: bool = True) -> Kernel:
    """do_toy() compiled."""
    made = toy(do_toy=text, g=f"{NOP} 89f8 c3")
    lined = Lined(made.memory, made.named, arity={"do_toy": 1})
    lined.lines = lines
    return cast(Kernel, lined)


def record(*children: Call, hits: Sequence[ProbeHit] = (), **more: Any) -> SyscallRecord:
    """A call of toy(7) that failed with EIO."""
    entry = Call(F, None, 1, list(children))
    made = SyscallRecord(1, 2, "test", 0, "toy", (7,), -5, 0, 99, [entry], False, list(hits), 0,
                         entry=entry)  # fmt: skip
    return replace(made, **more)


def explain(of: Kernel, what: SyscallRecord, probes: dict[str, int] | None = None) -> Verdict:
    """The verdict on a record."""
    return explain_call(of, what, probes=probes)[0]


def test_the_verdict_names_condition_statement_and_chain() -> None:
    """Source condition, which way it went, what it led to, where the error was made."""
    verdict = explain(kernel(), record())
    assert "toy failed with EIO: a0 != 5 was true in do_toy()" == verdict.summary
    assert "deduced" == verdict.confidence
    [condition] = verdict.conditions
    assert ("fs/toy.c", 5, "a0 != 5", "a0 != 5", True, "do_toy+0x8") == (
        condition.file, condition.line, condition.text, condition.expr, condition.taken,
        condition.offset,
    )  # fmt: skip
    assert condition.statement is not None
    assert ("ret = -EIO;", 6) == (condition.statement.text, condition.statement.line)
    assert verdict.origin is not None
    assert ("do_toy", "fs/toy.c", 6, "0x8") == (
        verdict.origin.function, verdict.origin.file, verdict.origin.line, verdict.origin.offset,
    )  # fmt: skip
    assert verdict.origin.comment is not None
    assert "Refuses odd modes." in verdict.origin.comment
    assert [("do_toy", -5)] == [(link.function, link.ret) for link in verdict.chain]
    assert ("EIO", ("0x7",), 2) == (verdict.call.errno, verdict.call.args, verdict.call.tid)


def test_the_excerpt_marks_what_decided_and_what_it_led_to() -> None:
    """The deciding condition by its columns, the statement as the result."""
    [excerpt] = explain(kernel(), record()).source
    marks = {mark.line: mark for mark in excerpt.marks}
    assert ("decides", 6, 13) == (marks[5].kind, marks[5].column, marks[5].end_column)
    assert "result" == marks[6].kind
    assert 9 not in marks
    assert tuple(SOURCE.splitlines()[excerpt.first - 1 :][: len(excerpt.lines)]) == excerpt.lines


def test_the_path_is_told_in_instructions() -> None:
    """Every branch of the path with the way it went."""
    [step] = explain(kernel(), record()).path
    assert ("do_toy+0x8", "decides", "not taken: a0 != 5") == (step.offset, step.kind, step.note)


def test_without_debug_information_the_machine_branch_is_named() -> None:
    """Function, offset, and what was compared; no file, no excerpt."""
    verdict = explain(kernel(lines=False), record())
    [condition] = verdict.conditions
    assert (None, None, "", "a0 != 5", "do_toy+0x8") == (
        condition.file, condition.line, condition.text, condition.expr, condition.offset,
    )  # fmt: skip
    assert () == verdict.source
    assert "toy failed with EIO: a0 != 5 in do_toy()" == verdict.summary


def test_a_probe_at_the_deciding_branch_makes_the_answer_observed() -> None:
    """And its value is told as probed."""
    seen = ProbeHit("k0", 5, 2, None, {"flags": 0, "rdi": 7})
    verdict = explain(kernel(), record(hits=[seen]), {"k0": BRANCH})
    assert "observed" == verdict.confidence


def test_an_error_of_which_the_code_tells_nothing_is_unknown() -> None:
    """No path ends in it, or the call's own function was not seen."""
    wrong = explain(kernel(), record(ret=-6))
    unseen = explain(kernel(), record(entry=None))
    for verdict in (wrong, unseen):
        assert ("unknown", None) == (verdict.confidence, verdict.origin)
        assert "is not known" in verdict.summary
    assert ("the system call's own function was not seen",) == unseen.evidence.notes


def test_lost_events_are_noted() -> None:
    """The path may then be incomplete."""
    assert any("lost" in note for note in explain(kernel(), record(lost=True)).evidence.notes)


# cmp edi,5; je 1f; cmp edi,6; je 1f; xor eax,eax; ret; 1: mov eax,-5; ret
TWO = f"{NOP} 83ff05 7408 83ff06 7403 31c0 c3 b8fbffffff c3"


def test_several_branches_that_fit_are_candidates_with_a_probe_each() -> None:
    """No source joins them: the verdict is ambiguous and says what would tell."""
    verdict = explain(kernel(TWO, lines=False), record())
    assert "ambiguous" == verdict.confidence
    assert {"do_toy+0x8", "do_toy+0xd"} == {c.conditions[-1].offset for c in verdict.candidates}
    assert all(c.probe and c.probe in c.why for c in verdict.candidates)


def test_probes_settle_the_candidates() -> None:
    """The first branch was passed: the second decided."""
    probes = {"k0": F + 8, "k1": F + 13}
    hits = [ProbeHit("k0", 5, 2, None, {"flags": 0}), ProbeHit("k1", 6, 2, None, {"flags": ZF})]
    verdict = explain(kernel(TWO, lines=False), record(hits=hits), probes)
    assert "observed" == verdict.confidence
    assert "do_toy+0xd" == verdict.conditions[-1].offset


def test_the_probes_to_arm_are_the_open_branches() -> None:
    """As kprobe events that record the registers and the flags."""
    of = kernel(TWO, lines=False)
    analysis = analyse(of, ARCH, Code(of, ARCH), record())
    addresses = probe_addresses(analysis.findings)
    assert {F + 8, F + 13} == set(addresses)
    first = probe_definitions(ARCH, addresses)[0]
    assert ("k0", addresses[0]) == (first["name"], first["address"])
    assert first["definition"].startswith(f"p:k0 {addresses[0]:#x} rax=%ax:x64 ")
    assert "flags=%flags:x64" in first["definition"]


def test_a_hit_of_no_recorded_call_is_noted() -> None:
    """It happened before the call began."""
    of = kernel()
    code = Code(of, ARCH)
    seen = record(hits=[ProbeHit("k0", 0, 2, None, {"flags": 0})])
    analysis = analyse(of, ARCH, code, seen, probed(code, seen, {"k0": BRANCH}))
    assert ["a probe hit in do_toy belongs to no recorded call"] == analysis.notes
    assert 1 == len(analysis.findings)


def test_a_recorded_incident_is_analysed_from_the_record() -> None:
    """The arguments saved in pt_regs and the probes' absence need no more than code and calls."""
    case = recorded("msgrcv_nomsg-6.12")
    of = cast(Kernel, case.machine)
    [finding] = analyse(of, ARCH, Code(of, ARCH), case.record).findings
    assert ["do_msgrcv", "__x64_sys_msgrcv"] == [f.function.name for f in finding.chain()]


# --- sites ---------------------------------------------------------------------------------------


def site() -> Site:
    """The place of do_toy's branch."""
    return locate(kernel(), BRANCH)


def test_a_branch_stands_at_its_source_condition() -> None:
    """And two branches of one condition are the same place."""
    found = site()
    assert ("do_toy", "fs/toy.c", 5, "do_toy+0x8") == (
        found.function, found.file, found.line, found.offset,
    )  # fmt: skip
    assert found.condition is not None
    assert "a0 != 5" == found.condition.text
    assert found.identity == locate(kernel(), F + 5).identity
    assert (BRANCH,) == locate(kernel(lines=False), BRANCH).identity


@pytest.mark.parametrize(
    ("op", "text", "expected"),
    [
        ("eq", "a0 != 5", False), ("ne", "a0 != 5", True), ("eq", "a0 == 5", True),
        ("sgt", "a0 > 4", True), ("sle", "a0 > 4", False), ("slt", "a0 < 5", True),
        ("ugt", "IS_ERR(p)", True), ("ule", "IS_ERR(p)", False),
    ],
)  # fmt: skip
def test_the_comparison_tells_whether_the_condition_was_true(
    op: str, text: str, expected: bool
) -> None:
    """Where source and machine compare alike."""
    place = site()
    assert place.condition is not None
    condition = replace(place.condition, core=text, text=text, atom=text)
    decision = Decision(BRANCH, "branch", True, (op, sym("init", 1, "rdi"), 5, 4), F + 0x10)
    given = replace(place, condition=condition)
    assert expected == held(kernel(), given, decision, [], [])
    negated = replace(given, condition=replace(condition, negated=True))
    assert expected != held(kernel(), negated, decision, [], [])


@pytest.mark.parametrize(("text", "expected"), [("is_clear(flags)", True), ("g(flags)", False)])
def test_the_inside_of_a_predicate_is_not_its_result(text: str, expected: bool) -> None:
    """A macro may well hold when the machine finds zero; the result of a function does not."""
    place = site()
    assert place.condition is not None
    given = replace(place, condition=replace(place.condition, core=text, text=text, atom=text))
    decision = Decision(BRANCH, "branch", True, ("eq", sym("ret", 1, 0), 0, 4), F + 0x10)
    assert expected == held(kernel(), given, decision, [F + 0xA], [])


def test_lines_that_would_have_run_tell_when_the_comparison_does_not() -> None:
    """The other way leads into the condition's branch: so it was false."""
    decision = Decision(BRANCH, "branch", True, None, F + 0x10)
    assert not held(kernel(), site(), decision, [], [F + 0xA])


def test_the_statement_that_an_outcome_leads_to() -> None:
    """Inside the branch when true, behind it when false."""
    true, false = led_to(kernel(), site(), True), led_to(kernel(), site(), False)
    assert true is not None
    assert false is not None
    assert ("ret = -EIO;", "ret = 0;") == (true.text, false.text)


# --- rounds --------------------------------------------------------------------------------------


def session(monkeypatch: pytest.MonkeyPatch, *recordings: Any, **asked: Any) -> rounds.Session:
    """A session whose rounds were decoded to ``recordings``."""
    of = kernel(TWO, lines=False)
    evidence: Any = SimpleNamespace(rounds=[r.round for r in recordings])
    ranked = {id(r): [SimpleNamespace(index=0, name="toy", errno="EIO", tid=2, reason="")]
              if r.record else [] for r in recordings}  # fmt: skip
    monkeypatch.setattr(rounds, "rank", lambda r, **_: ranked[id(r)])
    made = rounds.Session(evidence, of, Code(of, ARCH), **asked)
    made.recordings = dict(enumerate(recordings))
    return made


def recording(what: SyscallRecord | None, *probes: tuple[str, int]) -> Any:
    """A decoded round with one failed call, or none."""
    armed = [{"name": n, "ok": True, "definition": f"p:{n} {a:#x} rax=%ax"} for n, a in probes]
    return SimpleNamespace(
        record=what, syscall=lambda _i: what, name=lambda _i: "toy", windows=[1, 2], failing=[],
        events=[1, 2, 3], lost={}, notes=[], tasks={}, round=Round(probes=cast(Any, armed)),
    )  # fmt: skip


def test_a_later_round_with_probes_is_the_better_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first leaves two candidates and asks for probes; the second has their hits."""
    first = recording(record())
    open_ = rounds.answer(session(monkeypatch, first))
    assert ("ambiguous", 2) == (open_.verdict.confidence, len(open_.probes))
    hits = [ProbeHit("k0", 5, 2, None, {"flags": ZF})]
    second = recording(record(hits=hits), ("k0", F + 8), ("k1", F + 13))
    settled = rounds.answer(session(monkeypatch, first, second)).verdict
    assert ("observed", "do_toy+0x8") == (settled.confidence, settled.conditions[-1].offset)
    assert (2, ("do_toy+0x8", "do_toy+0xd")) == (settled.evidence.rounds, settled.evidence.probes)


def test_a_later_round_without_the_failure_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first round's answer stands."""
    made = session(monkeypatch, recording(record()), recording(None, ("k0", F + 8)))
    assert "ambiguous" == rounds.answer(made).verdict.confidence


def test_no_failure_in_any_round_is_nothing_to_explain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message counts the calls that were made."""
    with pytest.raises(NothingToExplain, match=r"no system call failed \(2 were made\)"):
        rounds.answer(session(monkeypatch, recording(None)))
