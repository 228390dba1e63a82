"""x86-64 machine code in the neutral form, and the facts of its kernels."""

import itertools

import pytest
from tests.unit.flow_build import ARCH, recorded

from kwhy import arch as architectures
from kwhy.arch.x86_64 import condition_holds, decode, indirect_thunk, is_return_thunk, trace_site
from kwhy.flow.ir import INVERSE, Insn
from kwhy.flow.state import State, apply, decide
from kwhy.flow.terms import assume, low, mask, signed, sym

AT = 0x1000
EDGES = (0, 1, 2, 127, 128, 129, 254, 255)
CF, ZF, SF, OF = 1 << 0, 1 << 6, 1 << 7, 1 << 11
EAX, EDI = ("reg", "rax", 4), ("reg", "rdi", 4)


def one(text: str) -> Insn:
    """The only instruction of some bytes in hex."""
    [insn] = decode(bytes.fromhex(text), AT)
    return insn


def run(text: str, **registers: int) -> State:
    """The state after straight-line code."""
    state = State(1, {**registers}, {}, {})
    for insn in decode(bytes.fromhex(text), AT):
        apply(state, insn.effects, insn.address)
    return state


@pytest.mark.parametrize(
    ("text", "kind", "condition", "target"),
    [
        ("7406", "branch", "eq", AT + 8),
        ("0f8700000000", "branch", "ugt", AT + 6),
        ("78fe", "branch", "neg", AT),
        ("ebfe", "jump", "", AT),
        ("e8fbffffff", "call", "", AT),
        ("c3", "return", "", None),
        ("f3c3", "return", "", None),
        ("0f0b", "trap", "", None),
        ("cc", "trap", "", None),
        ("f4", "stop", "", None),
        ("0f44c7", "select", "eq", None),
        ("0f94c0", "select", "eq", None),
        ("19c0", "select", "ult", None),
        ("0f1f00", "op", "", None),
        ("f30f1efa", "op", "", None),
    ],
)
def test_how_control_goes_on(text: str, kind: str, condition: str, target: int | None) -> None:
    """Each kind of instruction, with its condition and target."""
    insn = one(text)
    assert (kind, condition, target) == (insn.kind, insn.condition, insn.target)


def test_an_indirect_call_names_the_place_of_its_target() -> None:
    """Register or memory."""
    memory = ("load", ("bin", "add", 8, ("reg", "rax", 8), ("const", 0x20)), 8)
    assert ("reg", "rax", 8) == one("ffd0").through
    assert memory == one("ff5020").through


@pytest.mark.parametrize(
    ("text", "effects"),
    [
        ("89f8", (("set", "rax", 4, EDI),)),
        ("b8fbffffff", (("set", "rax", 4, ("const", 0xFFFFFFFB)),)),
        ("48c7c0fbffffff", (("set", "rax", 8, ("const", mask(8) - 4)),)),
        ("4863c7", (("set", "rax", 8, ("sext", 4, EDI)),)),
        ("39f8", (("flags", "cmp", 4, EAX, EDI),)),
        ("85c0", (("flags", "logic", 4, EAX, ("const", 0)),)),
        ("0fbae005", (("flags", "bit", 4, EAX, ("const", 5)),)),
        ("f7d0", (("set", "rax", 4, ("un", "not", 4, EAX)),)),
        ("90", ()),
    ],
)  # fmt: skip
def test_effects_in_the_neutral_form(text: str, effects: tuple[object, ...]) -> None:
    """Moves, extensions, comparisons, bits."""
    assert effects == one(text).effects


def test_addresses_of_all_shapes() -> None:
    """Base, scaled index, displacement, relative to the next instruction, per CPU."""
    scaled = ("bin", "mul", 8, ("reg", "rcx", 8), ("const", 8))
    whole = ("bin", "add", 8, ("bin", "add", 8, ("reg", "rdx", 8), scaled), ("const", 0x10))
    assert (("set", "rax", 8, ("load", whole, 8)),) == one("488b44ca10").effects
    assert (("set", "rax", 8, ("const", AT + 7 + 0x10)),) == one("488d0510000000").effects
    percpu = ("load", ("percpu", ("const", 0x20)), 8)
    assert (("set", "rax", 8, percpu),) == one("65488b042520000000").effects


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("31c0", 0),
        ("29c0", 0),
        ("b8ff000000 83c001", 256),
        ("48c7c0ffffffff 89c0", 0xFFFFFFFF),
        ("b812345678 b0ff", 0x785634FF),
        ("b800010000 0fb6c4", 1),
        ("b805000000 f7d8", 0xFFFFFFFB),
        ("b805000000 f7d0", 0xFFFFFFFA),
        ("b880ffffff 4898", mask(8) - 0x7F),
        ("b803000000 c1e004", 0x30),
        ("b8f0ffffff c1f802", 0xFFFFFFFC),
        ("b807000000 6bc006", 42),
        ("b8ff000000 0fbaf003", 0xF7),
        ("31c0 0fbae803", 8),
        ("b805000000 ffc8", 4),
        ("6a07 58", 7),
        ("b807000000 50 5a 89d0", 7),
        ("55 4889e5 b807000000 50 c9 b809000000", 9),
        ("31c9 87c9 8d4103", 3),
    ],
)
def test_straight_line_code_computes_what_the_processor_would(text: str, expected: int) -> None:
    """The effects, applied to a state, leave the value in rax."""
    assert expected == run(text).registers["rax"]


def test_the_stack_comes_back_after_push_pop_and_leave() -> None:
    """The offsets from the entry value even out."""
    stack = sym("init", 1, "rsp")
    assert stack == run("50 58").registers["rsp"]
    assert stack == run("55 4889e5 4883ec20 c9").registers["rsp"]


def test_an_exchange_with_memory_swaps() -> None:
    """The register gets the old memory, the memory the register."""
    # mov dword [rsp-8],5; mov eax,7; xchg [rsp-8],eax; mov ecx,[rsp-8]
    state = run("c74424f805000000 b807000000 874424f8 8b4c24f8")
    assert (5, 7) == (state.registers["rax"], state.registers["rcx"])


def test_an_instruction_without_a_model_forgets_what_it_writes() -> None:
    """cpuid leaves nothing known of its four registers, and the others alone."""
    state = run("0fa2", rax=1, rbx=2, rcx=3, rdx=4, rsi=5)
    lost = {name for name, value in state.registers.items() if not isinstance(value, int)}
    assert {"rax", "rbx", "rcx", "rdx"} == lost


def test_decoding_ends_behind_the_last_instruction_that_goes_on() -> None:
    """A return ends the straight line, bad bytes too."""
    assert ["nop", "ret"] == [insn.text for insn in decode(bytes.fromhex("90c39090"), AT)]
    assert ["nop"] == [insn.text for insn in decode(bytes.fromhex("9006"), AT)]
    assert 300 == len(decode(b"\x90" * 300, AT))


def flags_of_cmp(a: int, b: int) -> int:
    """RFLAGS after a comparison of two bytes (Intel SDM vol. 1, 3.4.3)."""
    difference = (a - b) & 255
    over = signed(a, 1) - signed(b, 1) != signed(difference, 1)
    return (
        (CF if a < b else 0) | (ZF if a == b else 0) | (SF if difference >> 7 else 0)
        | (OF if over else 0)
    )  # fmt: skip


@pytest.mark.parametrize(
    "condition",
    ["eq", "ne", "ult", "uge", "ule", "ugt", "slt", "sge", "sle", "sgt", "neg", "pos"],
)
def test_flags_and_comparison_agree(condition: str) -> None:
    """What a probe's flags say of a branch is what the compared values say."""
    for a, b in itertools.product(EDGES, EDGES):
        compared = decide(("cmp", 1, a, b), condition)
        assert compared is not None
        op, x, y, size = compared
        symbolic = assume({}, op, x, low(1, y), size) is not None
        assert condition_holds(condition, flags_of_cmp(a, b)) == symbolic, (a, b)


def test_inverse_conditions_are_inverse() -> None:
    """For every value of the flags exactly one of the two holds."""
    for bits in itertools.product((0, CF), (0, 1 << 2), (0, ZF), (0, SF), (0, OF)):
        for condition, inverse in INVERSE.items():
            assert condition_holds(condition, sum(bits)) is not condition_holds(inverse, sum(bits))
    assert condition_holds("never heard of", 0) is None


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("0f1f440000", 0),
        ("6666666690", 0),
        ("3e8d742600", 0),
        ("f30f1efa 0f1f440000", 4),
        ("660f1f00 0f1f440000", 4),
        ("0f1f40d6 e812345678", 4),
        ("e812345678", 0),
        ("cc1f440000", 0),
        ("4157415641 554154", None),
        ("41574156 e812345678", None),
        ("f30f1efa e912345678", None),
        ("0f1f", None),
    ],
)
def test_patch_sites_of_all_kernels(code: str, expected: int | None) -> None:
    """The nops of each kernel and processor, behind each landing pad, patched or not."""
    assert expected == trace_site(bytes.fromhex(code).ljust(16 if len(code) > 4 else 2, b"\x90"))


@pytest.mark.parametrize("case", ["dup_mfile-5.10", "dup_mfile-7.2", "flock_again-6.1"])
def test_the_system_calls_of_real_kernels_have_patch_sites(case: str) -> None:
    """Recorded code of three kernels: each function that left an event is traceable."""
    from kwhy.flow.cfg import Code

    found = recorded(case)
    code = Code(found.machine, ARCH)
    traced = {c.function for c in found.entry.walk() if c.kind == "traced"}
    assert [] == [
        code.name(f) for f in traced if f in found.machine.memory and not code.traceable(f)
    ]


def test_thunks_by_name() -> None:
    """Return thunks and retpolines of the kernels."""
    assert is_return_thunk("__x86_return_thunk")
    assert is_return_thunk("srso_return_thunk")
    assert not is_return_thunk("do_exit")
    assert indirect_thunk("__x86_indirect_thunk_r11") == "r11"
    assert indirect_thunk("__x86_indirect_call_thunk_rax") == "rax"
    assert indirect_thunk("__x86_indirect_thunk_array") == ""
    assert indirect_thunk("schedule") is None


def test_the_facts_of_the_architecture() -> None:
    """Found by the name that uname gives; probe registers as kprobe events spell them."""
    assert ARCH is architectures.of("x86_64")
    assert ("di", "r8", "flags") == tuple(ARCH.probe_registers[r] for r in ("rdi", "r8", "flags"))
    assert set(ARCH.registers) | {"flags"} == set(ARCH.probe_registers)
    with pytest.raises(KeyError):
        architectures.of("s390x")


def test_flags_are_made_for_a_condition_to_hold_or_not() -> None:
    """Of every condition that flags tell there are some for either way."""
    for condition in ("eq", "ne", "ult", "uge", "ule", "ugt", "slt", "sge", "sle", "sgt", "neg"):
        for holds in (True, False):
            flags = ARCH.flags_for(condition, holds)
            assert flags is not None and ARCH.condition_holds(condition, flags) is holds
    assert ARCH.flags_for("no such condition", True) is None
