"""Which paths of a function fit what was observed of one call of it."""

from typing import Any

import pytest
from tests.unit.flow_build import ARCH, GAP, TOY, Fixup, Machine, explored, results, toy

from kwhy.flow.cfg import Code, base_name
from kwhy.flow.explore import MAX_STATES, Callee, Explorer, Hit, Node, entry_state, prune
from kwhy.flow.outcome import Answers, Budget, may_differ, may_succeed

NOP = "0f1f440000"
EIO = -5 & 0xFFFFFFFF
F, G, H = TOY, TOY + GAP, TOY + 2 * GAP

# cmp edi,5; je 1f; mov eax,-5; ret; 1: xor eax,eax; ret
COMPARES = f"{NOP} 83ff05 7406 b8fbffffff c3 31c0 c3"
BRANCH = F + 8
# test edi,edi; je 1f; call g; mov eax,1; ret; 1: xor eax,eax; ret
CALLS = f"{NOP} 85ff 740b e8 @g b801000000 c3 31c0 c3"
SITE = F + 14
LEAF = f"{NOP} c3"
ZF = 1 << 6


def test_an_unobserved_branch_goes_both_ways() -> None:
    """Nothing is known of the argument, so both results remain."""
    _, found = explored(toy(f=COMPARES))
    assert [0, EIO] == results(found)
    assert found.complete


def test_a_known_argument_decides_a_branch() -> None:
    """With 5 in the register that is compared with 5, one way is left."""
    code = Code(toy(f=COMPARES), ARCH)
    found = Explorer(code, 1, code.function(F), []).run(entry_state(1, {"rdi": 5}))
    assert [0] == results(found)


def test_an_observed_call_decides_a_branch() -> None:
    """A call seen at its site, or not seen, tells which side of the branch ran."""
    machine = toy(f=CALLS, g=LEAF)
    _, with_call = explored(machine, [Callee(G, SITE)])
    _, without = explored(machine)
    assert ([1], [0]) == (results(with_call), results(without))


@pytest.mark.parametrize("callee", [Callee(G, SITE + 1), Callee(H, None)])
def test_a_call_that_the_code_cannot_make_fits_nothing(callee: Callee) -> None:
    """Another site, or another function: no path explains it."""
    _, found = explored(toy(f=CALLS, g=LEAF, h=LEAF), [callee])
    assert [] == found.returns


def test_a_call_without_a_site_is_known_by_its_function() -> None:
    """A tail call's parent tells no site; the target of the call instruction must do."""
    _, found = explored(toy(f=CALLS, g=LEAF), [Callee(G, None)])
    assert [1] == results(found)


def test_an_untraced_callee_may_run_unseen() -> None:
    """A function without a patch site leaves no event, so nothing tells the sides apart."""
    _, found = explored(toy(f=CALLS, g="c3"))
    assert [0, 1] == results(found)


def test_a_path_into_a_function_that_never_returns_is_dropped() -> None:
    """A call that came back did not go through panic()."""
    _, found = explored(toy(f=CALLS.replace("@g", "@panic"), panic="c3"))
    assert [0] == results(found)


@pytest.mark.parametrize(("flags", "expected"), [(ZF, [0]), (0, [EIO])])
def test_the_flags_of_a_probe_hit_force_its_branch(flags: int, expected: list[int]) -> None:
    """What the flags were just before the jump says which way it went."""
    hit = Hit(BRANCH, {"flags": flags})
    _, found = explored(toy(f=COMPARES), [hit], armed=frozenset([BRANCH]))
    assert expected == results(found)


def test_the_registers_of_a_probe_hit_are_facts() -> None:
    """The argument that a hit shows decides the comparison before it."""
    machine = toy(f=COMPARES)
    seven = [Hit(BRANCH, {"rdi": 7})]
    code = Code(machine, ARCH)
    explorer = Explorer(code, 1, code.function(F), seven, armed=frozenset([BRANCH]))
    found = explorer.run(entry_state(1, {"rdi": ("init", 0, "rdi")}))
    assert [EIO] == results(found)


def test_where_an_aligned_stack_lies_is_no_contradiction() -> None:
    """After `and rsp,-16` the places on the stack are known but for eight bytes."""
    # push rbp; mov rbp,rsp; push rbx; and rsp,-16; cmp edi,5; je 1f; mov eax,-5; jmp 2f; 1: xor
    # eax,eax; 2: mov rbx,[rbp-8]; leave; ret
    text = f"{NOP} 55 4889e5 53 4883e4f0 83ff05 7407 b8fbffffff eb02 31c0 488b5df8 c9 c3"
    stack = {"rbp": 0x7F0010, "rsp": 0x7F0000, "flags": 0}
    _, found = explored(toy(f=text), [Hit(F + 17, stack)], armed=frozenset([F + 17]))
    assert [EIO] == results(found)


def test_an_armed_address_without_a_hit_did_not_run() -> None:
    """The probed side of a branch is ruled out by the silence of its probe."""
    silent = F + 0x10  # xor eax, eax, with the return behind it: one segment, known by its end
    _, found = explored(toy(f=COMPARES), armed=frozenset([silent + 2]))
    assert [EIO] == results(found)


def test_a_hit_of_another_place_fits_nothing() -> None:
    """A hit must be consumed where it happened."""
    _, found = explored(toy(f=COMPARES), [Hit(F + 0x12, {})], armed=frozenset([F + 0x12, BRANCH]))
    assert [] == found.returns


def test_an_access_that_may_fault_goes_both_ways() -> None:
    """The exception table gives the other way on, with the register that it sets."""
    # mov rax,[rdi]; ret; fixup: ret
    machine = toy([Fixup(F + 5, F + 9, "efault", "rax", -14)], f=f"{NOP} 488b07 c3 c3")
    _, found = explored(machine)
    values = results(found)
    assert (-14 & (1 << 64) - 1) in values
    assert 2 == len(values)


def test_a_jump_table_is_followed_to_its_targets() -> None:
    """Each case of a switch is a way on; behind the table's last entry nothing is read."""
    # jmp [rdi*8 + t]; mov eax,1; ret; mov eax,2; ret
    text = f"{NOP} ff24fd 00200081 b801000000 c3 b802000000 c3"
    machine = toy(f=text, g=LEAF, t="=f+c =f+12")
    _, found = explored(machine)
    assert [1, 2] == results(found)
    assert {0, 1} == {d.index for _, d in found.root.after if d}


def test_a_conditional_move_is_a_choice() -> None:
    """Both values of a cmov remain, each with the decision that made it."""
    # xor eax,eax; mov edx,-5; test edi,edi; cmovne eax,edx; ret
    _, found = explored(toy(f=f"{NOP} 31c0 bafbffffff 85ff 0f45c2 c3"))
    assert [0, EIO] == results(found)
    assert {(True, "select"), (False, "select")} == {
        (d.taken, d.kind) for _, d in found.root.after if d
    }


def test_a_tail_call_returns_what_the_other_function_returned() -> None:
    """The result of a jump out of the function is the observed callee's."""
    _, found = explored(toy(f=f"{NOP} e9 @g", g=LEAF), [Callee(G, None)])
    assert [("ret", 1, 0)] == results(found)


def test_an_intended_trap_ends_a_path_unless_asked_for() -> None:
    """A ud2 of BUG() has no way on; that of WARN() does, in the second reading."""
    machine = toy(f=f"{NOP} 0f0b 31c0 c3")
    assert [] == explored(machine)[1].returns
    assert [0] == results(explored(machine, traps=True)[1])


def test_an_indirect_call_must_have_been_seen() -> None:
    """A call through a pointer is taken for traced; only the relaxed reading lets it be unseen."""
    machine = toy(f=f"{NOP} ffd0 31c0 c3", g=LEAF)
    assert [] == explored(machine)[1].returns
    assert [0] == results(explored(machine, relaxed=True)[1])
    assert [0] == results(explored(machine, quiet=lambda call: call == F + 5)[1])
    assert [0] == results(explored(machine, [Callee(G, F + 7)])[1])


def test_an_index_into_a_table_is_no_pointer() -> None:
    """isspace() reads _ctype[c]: a character is below any address, and that is no contradiction."""
    # movzx eax,byte [rdi]; test byte [rax-0x6e000000],0x20; je 1f; mov eax,-5; ret; 1: xor eax,eax
    text = f"{NOP} 0fb607 f6800000009220 7406 b8fbffffff c3 31c0 c3"
    assert [0, EIO] == results(explored(toy(f=text))[1])


def test_a_long_loop_is_joined() -> None:
    """400 calls from one site are explained in full, in nodes linear in the calls."""
    # push rbx; 1: call g; add ebx,eax; cmp ebx,edx; jb 1b; mov eax,ebx; pop rbx; ret
    loop = f"{NOP} 53 e8 @g 01c3 39d3 72f5 89d8 5b c3"
    _, found = explored(toy(f=loop, g=LEAF), [Callee(G, F + 11)] * 400)
    assert found.complete
    assert found.returns
    assert found.nodes < 8000


def test_a_loop_that_counts_down_is_joined() -> None:
    """Counters that look like error numbers do not tell thousands of states apart."""
    # mov rax,-1; 1: lea rax,[rax-1]; inc rdi; cmp byte [rdi],0; jne 1b; xor eax,eax; ret
    loop = f"{NOP} 48c7c0ffffffff 488d40ff 48ffc7 803f00 75f4 31c0 c3"
    _, found = explored(toy(f=loop))
    assert found.complete
    assert [0] == results(found)
    assert found.nodes < 4 * MAX_STATES


def test_what_a_branch_has_tested_is_known_behind_it_and_no_longer() -> None:
    """The result of a call is dead behind its test, and so is what is known of it then."""
    # push rdi; call g; pop rdi; test eax,eax; jne 1f; nop; jmp 2f; 1: nop; 2: mov eax,[rdi];
    # test eax,eax; je 3f; 3: ret
    text = f"{NOP} 57 e8 @g 5f 85c0 7503 90 eb01 90 8b07 85c0 7400 c3"
    _, found = explored(toy(f=text, g=LEAF), [Callee(G, F + 11)])
    result = ("ret", 1, 0)

    def knows(node: Node) -> bool:
        return ("low", 4, result) in node.state.facts

    tested = [
        child
        for node in found.calls[0]
        for after, _ in node.after
        for child, decision in after.after
        if decision is not None
    ]
    assert tested
    assert all(knows(node) for node in tested)
    assert not any(knows(node) for node in found.returns)


def test_a_callee_keeps_what_the_convention_keeps() -> None:
    """A traced call changes the caller-saved registers and leaves the others."""
    # mov ebx,7; mov ecx,7; call g; mov eax,ebx / ecx; ret
    for move, known in (("89d8", True), ("89c8", False)):
        machine = toy(f=f"{NOP} bb07000000 b907000000 e8 @g {move} c3", g=LEAF)
        _, found = explored(machine, [Callee(G, F + 20)])
        assert known == (results(found) == [7])


def test_an_untraced_callee_changes_only_what_it_writes() -> None:
    """Its code is at hand: a helper that writes only rax leaves rcx."""
    machine = toy(f=f"{NOP} b907000000 e8 @g 89c8 c3", g="31c0 c3")
    assert [7] == results(explored(machine)[1])


def test_what_a_callee_can_have_returned_rules_out_paths() -> None:
    """A truth value that is 0 or 1 cannot have been an error number."""
    # call g; test eax,eax; js 1f; xor eax,eax; ret; 1: ret
    machine = toy(f=f"{NOP} e8 @g 85c0 7803 31c0 c3 c3", g=LEAF)
    observed = [Callee(G, F + 10)]
    assert 2 == len(explored(machine, observed)[1].returns)
    _, found = explored(machine, observed, result_facts=lambda _k: {4: ((0, 1),)})
    assert [0] == results(found)


def test_the_other_side_is_open_while_it_can_return_something_else() -> None:
    """Behind the branch to -EIO nothing else can be returned; before it, something can."""
    explorer, found = explored(toy(f=COMPARES))
    ways = {d.taken: child for child, d in found.root.after if d}
    refused, passed = ways[False], ways[True]
    assert not may_differ(explorer, refused.segment.start, refused.state, EIO, 4)
    assert may_differ(explorer, passed.segment.start, passed.state, EIO, 4)
    assert not may_succeed(explorer, refused.segment.start, refused.state)
    assert may_succeed(explorer, passed.segment.start, passed.state)


def test_a_question_answered_once_costs_nothing_again() -> None:
    """Neither where it was asked, nor at what was met on the way; but no answer is none."""
    explorer, found = explored(toy(f=COMPARES))
    start, state = found.root.segment.start, found.root.state
    answers, budget = Answers(), Budget(0)
    assert not may_differ(explorer, start, state.copy(), EIO, 4, budget=budget, answers=answers)
    budget.left = 10
    for _ in range(2):
        assert may_differ(explorer, start, state.copy(), EIO, 4, budget=budget, answers=answers)
        left, budget.left = budget.left, 1
    assert left < 10
    assert 1 == budget.left
    refused = next(child for child, d in found.root.after if d and not d.taken)
    at = refused.segment.start, refused.state
    assert not may_differ(explorer, *at, EIO, 4, budget=Budget(5), answers=answers)
    assert not may_differ(explorer, *at, EIO, 4, budget=Budget(0), answers=answers)


def test_pruning_keeps_the_way_to_the_chosen_returns() -> None:
    """Only the root and one side are on the way to one of the two returns."""
    _, found = explored(toy(f=COMPARES))
    one = [node for node in found.returns if node.result == EIO]
    keep = prune(one)
    assert {id(found.root), id(one[0])} == keep


# --- functions cut into segments -----------------------------------------------------------------


def kinds(machine: Machine) -> list[str]:
    """The kinds of a function's segments in order of address."""
    function = Code(machine, ARCH).function(F)
    return [function.segments[start].kind for start in sorted(function.segments)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (COMPARES, ["branch", "return", "return"]),
        (CALLS, ["branch", "call", "return", "return"]),
        (f"{NOP} e9 @g", ["tail"]),
        (f"{NOP} 0f45c2 c3", ["select", "return"]),
        (f"{NOP} 0f0b c3", ["trap", "return"]),
        (f"{NOP} f4", ["stop"]),
    ],
)
def test_a_function_is_cut_where_control_may_turn(text: str, expected: list[str]) -> None:
    """Each segment ends in one turn, of the kind that its last instruction has."""
    assert expected == kinds(toy(f=text, g=LEAF))


def test_a_return_thunk_is_a_return_and_a_retpoline_an_indirect_jump() -> None:
    """The kernel's thunks stand for the instructions that they replace."""
    assert ["return"] == kinds(toy(f=f"{NOP} e9 @__x86_return_thunk", __x86_return_thunk="c3"))
    machine = toy(f=f"{NOP} e9 @__x86_indirect_thunk_rax", __x86_indirect_thunk_rax="ffe0")
    segment = Code(machine, ARCH).function(F).segments[F]
    assert ("tail", None, ("reg", "rax", 8)) == (segment.kind, segment.target, segment.through)


def test_the_unlikely_part_of_a_function_belongs_to_it() -> None:
    """A branch into NAME.cold goes on there; its own names lose the suffix."""
    machine = toy(f=f"{NOP} 85ff 0f85 @cold 31c0 c3", cold="b8fbffffff c3")
    machine.named = [type(s)(s.name.replace("cold", "f.cold"), s.address, s.size)
                     for s in machine.named]  # fmt: skip
    assert [0, EIO] == results(explored(machine)[1])
    assert ("f", "f") == (base_name("f.cold"), base_name("f"))


def test_code_that_cannot_be_decoded_is_told() -> None:
    """An undecodable byte leaves the function marked incomplete, and does not stop the rest."""
    function = Code(toy(f=f"{NOP} 85ff 7401 c3 06"), ARCH).function(F)
    assert [f"cannot decode {F + 10:#x}"] == function.incomplete


def test_callees_and_targets_are_seen_through_static_calls() -> None:
    """A call of a __SCT__ trampoline is a call of the function it jumps to at that time."""
    machine = toy(f=f"{NOP} e8 @__SCT__x c3", g=LEAF, __SCT__x="e9 @g")
    code = Code(machine, ARCH)
    assert frozenset([G]) == code.callees(F)
    assert code.direct_target(F + 10) == G
    assert code.direct_target(F + 5) is None
    assert code.callees(0x1000) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LEAF, True),
        ("c3", False),
        ("f30f1efa 0f1f440000 c3", True),
        ("e8 @ftrace_regs_caller c3", True),
        ("e8 @other c3", False),
        ("cc1f440000 c3", True),
    ],
)
def test_what_leaves_an_event_is_told_by_the_code(text: str, expected: bool) -> None:
    """A patch site does, also while it is patched; an ordinary first call is no patch site."""
    machine = toy(f=text, ftrace_regs_caller="c3", other="c3")
    assert expected == Code(machine, ARCH).traceable(F)


def test_registers_that_an_untraced_callee_writes() -> None:
    """Known for a leaf; one that calls on may change all that the convention allows."""
    machine = toy(f="31c9 c3", g="e8 @h c3", h="c3")
    code = Code(machine, ARCH)
    assert {"rcx", "flags", "rax"} == code.written(F)
    assert ARCH.clobbered == code.written(G)


def test_liveness_knows_what_is_still_read() -> None:
    """At the entry of the comparison its operand matters, behind it nothing but the stack does."""
    live: dict[int, Any] = dict(Code(toy(f=COMPARES), ARCH).function(F).live)
    assert {"rdi", "rsp"} == live[F]
    assert {"rsp"} == live[F + 0x10]
