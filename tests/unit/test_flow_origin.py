"""Where an error number was made, told from recorded calls and code of real kernels."""

from pathlib import Path

import pytest
from tests.unit.flow_build import (
    ARCH,
    DATA,
    GAP,
    TOY,
    Machine,
    Recorded,
    analysed,
    recorded,
    toy,
)

from kwhy.flow.cfg import Code
from kwhy.flow.explore import Hit, entry_state
from kwhy.flow.origin import MAX_WORK, Finding, Tracer, above_parting
from kwhy.lab.incidents import INCIDENTS
from kwhy.record.model import Call

CASES = sorted(path.stem for path in Path(DATA).glob("*.json"))
# Several conditions fit one run; a probe tells.
OPEN = ("epoll_self-7.2",)
NOP = "0f1f440000"
F, G, H = TOY, TOY + GAP, TOY + 2 * GAP
ZF = 1 << 6


def plain(text: str) -> str:
    """A condition without the compiler's hints."""
    return text[9:-1] if text.startswith("unlikely(") else text


def truths(case: Recorded) -> set[tuple[str, str, bool]]:
    """The incident's true conditions."""
    found = INCIDENTS[case.incident].truths_in(case.series)
    return {(t.function, plain(t.text), t.holds) for t in found}


def told(case: Recorded, findings: list[Finding]) -> set[tuple[str, str, bool]]:
    """What the findings say in the source's words, of values that code made."""
    made = [f for f in findings if f.kind == "constant"]
    return {(function, plain(text), held) for function, text, held in case.answers(made)}


def ends(name: str) -> list[str]:
    """The chain of a case's only finding, by function."""
    _, _, [finding] = analysed(name)
    return [frame.function.name for frame in finding.chain()]


@pytest.mark.parametrize("name", CASES)
def test_the_truth_of_the_incident_is_found(name: str) -> None:
    """The branches that decided where code made the error are the incident's true condition."""
    case, tracer, findings = analysed(name)
    answers = told(case, findings)
    assert answers & truths(case)
    assert name in OPEN or answers <= truths(case)
    assert not tracer.cut
    assert [] == tracer.notes


def test_the_error_is_followed_up_to_the_system_call() -> None:
    """The chain of the field report's incident names every function that handed EIO on."""
    assert [
        "__tty_check_change", "tty_check_change", "set_termios", "tty_mode_ioctl",
        "n_tty_ioctl_helper", "n_tty_ioctl", "tty_ioctl", "__x64_sys_ioctl",
    ] == ends("tcsetattr_orphan-6.12")  # fmt: skip


def test_each_frame_of_the_chain_knows_its_call_site() -> None:
    """The site is the return address of a call in the parent's code."""
    _, _, [finding] = analysed("tcsetattr_orphan-6.12")
    frames = finding.chain()
    for frame in frames[:-1]:
        assert frame.parent is not None
        segments = frame.parent.function.segments.values()
        assert frame.site in {s.last.end for s in segments if s.kind in ("call", "tail")}
    assert frames[-1].site is None


@pytest.mark.parametrize("name", ["keyctl_nokey-6.1", "keyctl_nokey-6.12"])
def test_a_tail_call_of_an_untraced_function_is_looked_through(name: str) -> None:
    """__do_sys_keyctl leaves no event of its own and jumps on; the chain names it all the same."""
    assert ["keyctl_read_key", "__do_sys_keyctl", "__x64_sys_keyctl"] == ends(name)


def without(name: str, argument: int, value: int) -> list[Finding]:
    """The findings had the system call been given another argument."""
    case = recorded(name)
    args = list(case.record.args)
    args[argument] = value
    case.record.args = tuple(args)
    return case.findings()


def test_the_arguments_of_the_system_call_decide() -> None:
    """Without IPC_NOWAIT among the flags, no path of msgrcv can have ended in ENOMSG."""
    _, _, [finding] = analysed("msgrcv_nomsg-6.12")
    assert "do_msgrcv" == finding.frame.function.name
    assert [] == without("msgrcv_nomsg-6.12", 4, 0)


def test_a_guard_clause_that_was_passed_by_does_not_decide() -> None:
    """In front of ENOTDIR the walk might have failed with ECHILD: that is another question."""
    case, _, findings = analysed("open_notdir-6.12")
    assert {("link_path_walk", "!d_can_lookup(nd->path.dentry)", True)} == told(case, findings)
    [finding] = case.findings(case.tracer(passing=None))
    assert case.passed.keys() & {(d.address, d.taken) for _, d in finding.deciding}


def test_what_callees_can_have_returned_narrows_the_search() -> None:
    """dup on 5.10 without that knowledge leaves more, or as much, and never less."""
    case, _, better = analysed("dup_mfile-5.10")
    plain_findings = case.findings(case.tracer(oracle=False))
    edges = {(d.address, d.taken) for f in better for _, d in f.deciding}
    assert edges <= {(d.address, d.taken) for f in plain_findings for _, d in f.deciding}


def test_frames_that_leave_nothing_open_are_not_explored_again() -> None:
    """The second search takes them from the first, and has the same answer."""
    case = recorded("tcsetattr_orphan-6.12")
    first = case.tracer(oracle=False)
    findings = case.findings(first)
    settled = above_parting(findings)
    above = findings[0].chain()[:0:-1]
    assert [frame.call for frame in above] == [frame.call for frame in settled.values()]
    second = case.tracer(oracle=True, settled=settled)
    again = case.findings(second)
    assert {f.key() for f in findings} == {f.key() for f in again}
    assert [f.exploration for f in again[0].chain()][1:] == [
        f.exploration for f in reversed(settled.values())
    ]
    assert {} == above_parting([])


# --- probes --------------------------------------------------------------------------------------


def probed(case: Recorded, address: int, flags: int | None) -> set[tuple[int, bool]]:
    """The deciding branches after a round with a probe at ``address``; flags None: no hit."""
    function = case.machine.at(address)
    assert function is not None
    call = case.call(function.name)
    hits = {} if flags is None else {id(call): [(1 << 40, Hit(address, {"flags": flags}))]}
    tracer = case.tracer(hits=hits, armed=frozenset([address]))
    findings = case.findings(tracer)
    return {(d.address, d.taken) for f in findings for _, d in f.deciding}


def test_a_probe_settles_what_one_run_leaves_open() -> None:
    """The flags at one of four branches that fit rule out others."""
    case, _, findings = analysed("epoll_self-7.2")
    edges = {(d.address, d.taken) for f in findings for _, d in f.deciding}
    assert len(edges) > 1
    true = min(e for e in edges if case.sites[e][1] == "f == tf->file || !is_file_epoll(f)")
    after = probed(case, true[0], ZF)
    assert true in after
    assert after < edges


def test_a_missed_hit_does_not_cost_the_answer() -> None:
    """Armed, never hit: the deciding branch is then read without its probe."""
    case, _, [finding] = analysed("tcsetattr_orphan-6.12")
    [(_, decision)] = finding.deciding
    assert {(decision.address, decision.taken)} == probed(case, decision.address, None)


# --- toys ----------------------------------------------------------------------------------------


def traced(machine: Machine, want: int, *children: Call, **more: object) -> list[Finding]:
    """The findings for a call of the first function that returned ``want``."""
    tracer = Tracer(Code(machine, ARCH), **more)  # type: ignore[arg-type]
    return tracer.trace(Call(F, None, 0, list(children)), want, entry_state(0))


def test_a_constant_of_the_code_is_made_there() -> None:
    """The branch in front of -EIO decides."""
    machine = toy(f=f"{NOP} 83ff05 7406 b8fbffffff c3 31c0 c3")
    [finding] = traced(machine, -5)
    assert ("constant", [(F + 8, False)]) == (
        finding.kind, [(d.address, d.taken) for _, d in finding.deciding],
    )  # fmt: skip
    assert [] == traced(machine, -6)


def test_a_result_is_followed_into_the_callee() -> None:
    """A caller that hands its callee's result on is no origin."""
    refuses = f"{NOP} 85ff 7406 b8fbffffff c3 31c0 c3"
    machine = toy(f=f"{NOP} 53 e8 @g 5b c3", g=refuses)
    [finding] = traced(machine, -5, Call(G, F + 11, 1))
    assert (["g", "f"], F + 11) == (
        [frame.function.name for frame in finding.chain()], finding.frame.site,
    )  # fmt: skip


def test_a_constant_that_equals_a_known_result_is_the_callees() -> None:
    """After `if (ret == -EIO) return -EIO` compilers return a constant; its maker is the callee."""
    # call g; cmp eax,-5; je 1f; xor eax,eax; ret; 1: mov eax,-5; ret
    text = f"{NOP} e8 @g 83f8fb 7403 31c0 c3 b8fbffffff c3"
    machine = toy(f=text, g=f"{NOP} 85ff 7406 b8fbffffff c3 31c0 c3")
    [finding] = traced(machine, -5, Call(G, F + 10, 1))
    assert "g" == finding.frame.function.name


def test_a_value_from_memory_or_from_the_caller_is_told_as_such() -> None:
    """What was loaded was made elsewhere; what was handed in comes from the caller."""
    [memory] = traced(toy(f=f"{NOP} 8b07 c3"), -5)
    [argument] = traced(toy(f=f"{NOP} 89f8 c3"), -5)
    [unknown] = traced(toy(f=f"{NOP} 0fa2 c3"), -5)  # cpuid
    assert ("memory", "argument", "unknown") == (memory.kind, argument.kind, unknown.kind)


def test_an_error_returned_through_a_stack_slot_is_followed_to_its_writer() -> None:
    """The callee got the slot's address and stored the constant there."""
    # sub rsp,16; lea rdi,[rsp+8]; call g; mov eax,[rsp+8]; add rsp,16; ret
    text = f"{NOP} 4883ec10 488d7c2408 e8 @g 8b442408 4883c410 c3"
    # test esi,esi; je 1f; mov dword [rdi],-5; ret; 1: mov dword [rdi],0; ret
    writes = f"{NOP} 85f6 7407 c707fbffffff c3 c70700000000 c3"
    [finding] = traced(toy(f=text, g=writes), -5, Call(G, F + 19, 1))
    assert ("constant", "g", ["returned through memory"]) == (
        finding.kind, finding.frame.function.name, finding.notes,
    )  # fmt: skip


def test_a_write_elsewhere_does_not_hide_who_wrote_the_slot() -> None:
    """A reference is taken between the failing call and the return; what decided is the store."""
    # sub rsp,16; lea rdi,[rsp+8]; call g; mov dword [rbx],1; mov eax,[rsp+8]; add rsp,16; ret
    text = f"{NOP} 4883ec10 488d7c2408 e8 @g c70301000000 8b442408 4883c410 c3"
    # mov eax,[rsi]; test eax,eax; je 1f; mov [rdi],eax; xor eax,eax; ret; 1: xor eax,eax; ret
    writes = f"{NOP} 8b06 85c0 7405 8907 31c0 c3 31c0 c3"
    [finding] = traced(toy(f=text, g=writes), -5, Call(G, F + 19, 1))
    assert ("memory", "g") == (finding.kind, finding.frame.function.name)
    assert [G + 9] == [decision.address for _, decision in finding.deciding]


def test_a_search_that_grows_too_large_ends() -> None:
    """Beyond the limit nothing more is followed, and the tracer says that it was cut."""
    tracer = Tracer(Code(toy(f=f"{NOP} b8fbffffff c3"), ARCH))
    tracer.work = MAX_WORK + 1
    assert [] == tracer.trace(Call(F, None, 0), -5, entry_state(0))
    assert tracer.cut


def test_what_a_recorded_call_can_have_returned() -> None:
    """By its own observed calls, per size in bytes; a truth value is 0 or 1 at least."""
    machine = toy(f=f"{NOP} 85ff 740b e8 @g b801000000 c3 31c0 c3", g=f"{NOP} 89f8 c3")
    tracer = Tracer(Code(machine, ARCH), returns_bool=lambda address: address == G)
    spans = {1: ((1, 1),), 4: ((1, 1),), 8: ((1, 1),)}
    assert spans == tracer.returned(Call(F, None, 0, [Call(G, F + 14, 1)]))
    assert ((0, 0),) == tracer.returned(Call(F, None, 0))[4]
    assert {1: ((0, 1),)} == {k: v for k, v in tracer.returned(Call(G, None, 0)).items() if k == 1}


def test_interrupts_are_no_calls_of_the_function() -> None:
    """What an interrupt ran on top is left out of the observation."""
    machine = toy(f=f"{NOP} b8fbffffff c3", g=f"{NOP} c3")
    [finding] = traced(machine, -5, Call(G, None, 1, [], "interrupt"))
    assert "f" == finding.frame.function.name
