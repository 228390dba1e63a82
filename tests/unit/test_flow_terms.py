"""Symbolic values against brute force over all values of one byte."""

import itertools
from collections.abc import Callable, Iterable

import pytest

from kwhy.flow.terms import (
    ALL64,
    MAX_DEPTH,
    Facts,
    Intervals,
    Term,
    add,
    assume,
    binary,
    by_argument,
    concrete,
    domain,
    invert,
    known,
    low,
    mask,
    negate,
    parts,
    sext,
    signed,
    sym,
    wanted,
    width,
)

HOLDS: dict[str, Callable[[int, int], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "ult": lambda a, b: a < b,
    "ule": lambda a, b: a <= b,
    "ugt": lambda a, b: a > b,
    "uge": lambda a, b: a >= b,
    "slt": lambda a, b: signed(a, 1) < signed(b, 1),
    "sle": lambda a, b: signed(a, 1) <= signed(b, 1),
    "sgt": lambda a, b: signed(a, 1) > signed(b, 1),
    "sge": lambda a, b: signed(a, 1) >= signed(b, 1),
}
BYTES = range(256)
EDGES = (0, 1, 2, 5, 126, 127, 128, 129, 200, 254, 255)
X, Y = sym("init", 1, "rdi"), sym("init", 1, "rsi")
BYTE = low(1, X)


def values(spans: Intervals) -> set[int]:
    """The numbers in some intervals."""
    return {v for lo, hi in spans for v in range(lo, hi + 1)}


@pytest.mark.parametrize("op", HOLDS)
def test_wanted_holds_the_values_for_which_a_comparison_is_true(op: str) -> None:
    """Every operator, every right side."""
    for value in BYTES:
        assert {x for x in BYTES if HOLDS[op](x, value)} == values(wanted(op, value, 1))


SHAPES: dict[str, tuple[Term, Callable[[int], int]]] = {
    "byte": (BYTE, lambda x: x),
    "sum": (low(1, add(X, 3)), lambda x: (x + 3) & 255),
    "difference": (low(1, add(X, -200)), lambda x: (x - 200) & 255),
    "negated": (negate(1, X), lambda x: -x & 255),
    "sum of the negated": (low(1, add(negate(1, X), 7)), lambda x: (7 - x) & 255),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_one_comparison_leaves_exactly_the_values_that_fit(shape: str) -> None:
    """assume() against a constant, then domain() of the term and of the byte in it."""
    term, compute = SHAPES[shape]
    for op, value in itertools.product(HOLDS, EDGES):
        expected = {x for x in BYTES if HOLDS[op](compute(x), value)}
        facts = assume({}, op, term, value, 1)
        if facts is None:
            assert set() == expected
            continue
        assert expected == values(domain(BYTE, facts))
        assert {compute(x) for x in expected} == values(domain(term, facts))


def test_a_constant_on_the_left_is_the_mirrored_comparison() -> None:
    """``5 < x`` is ``x > 5``."""
    for op, value in itertools.product(HOLDS, EDGES):
        expected = {x for x in BYTES if HOLDS[op](value, x)}
        facts = assume({}, op, value, BYTE, 1)
        assert expected == (set() if facts is None else values(domain(BYTE, facts)))


def test_two_comparisons_leave_what_fits_both() -> None:
    """Facts meet; what cannot be is None."""
    for first, a, second, b in itertools.product(HOLDS, EDGES[::3], HOLDS, EDGES[::3]):
        expected = {x for x in BYTES if HOLDS[first](x, a) and HOLDS[second](x, b)}
        facts: Facts | None = assume({}, first, BYTE, a, 1)
        facts = None if facts is None else assume(facts, second, BYTE, b, 1)
        assert expected == (set() if facts is None else values(domain(BYTE, facts)))


def test_a_value_is_known_when_just_one_is_left() -> None:
    """known() agrees with the size of what brute force leaves."""
    for first, a, second, b in itertools.product(HOLDS, EDGES[::2], HOLDS, EDGES[::2]):
        fits = [x for x in BYTES if HOLDS[first](x, a) and HOLDS[second](x, b)]
        facts: Facts | None = assume({}, first, BYTE, a, 1)
        facts = None if facts is None else assume(facts, second, BYTE, b, 1)
        if facts is not None:
            assert (fits[0] if len(fits) == 1 else None) == known(BYTE, facts)


def test_sign_extension_carries_facts_both_ways() -> None:
    """A byte widened to 8: what the wide value was compared with binds the byte."""
    wide = sext(1, X)
    for op, value in itertools.product(("slt", "sge", "eq", "ne", "ult", "ugt"), (-128, -1, 0, 5)):
        orders: dict[str, Callable[[int, int], bool]] = {
            "slt": lambda a, b: a < b,
            "sge": lambda a, b: a >= b,
            "eq": lambda a, b: a == b,
            "ne": lambda a, b: a != b,
            "ult": lambda a, b: a & ALL64 < b & ALL64,
            "ugt": lambda a, b: a & ALL64 > b & ALL64,
        }
        compare = orders[op]
        expected = {x for x in BYTES if compare(signed(x, 1), value)}
        facts = assume({}, op, wide, value & ALL64, 8)
        assert expected == (set() if facts is None else values(domain(BYTE, facts)))


def pairs(relations: Iterable[tuple[str, bool]]) -> bool:
    """Whether some two bytes are in all these relations; True swaps the two."""
    relations = list(relations)
    return any(
        all(HOLDS[op](*((b, a) if swap else (a, b))) for op, swap in relations)
        for a in EDGES
        for b in EDGES
    )


def test_two_unknown_values_are_kept_in_order() -> None:
    """Two comparisons of the same two terms are refused exactly when no two bytes fit both."""
    y = low(1, Y)
    for first, second, swap in itertools.product(HOLDS, HOLDS, (False, True)):
        facts = assume({}, first, BYTE, y, 1)
        assert facts is not None
        again = assume(facts, second, *((y, BYTE) if swap else (BYTE, y)), 1)
        assert pairs([(first, False), (second, swap)]) == (again is not None), (first, second, swap)


def test_a_term_compares_with_itself_as_equal() -> None:
    """Whatever its value."""
    for op in HOLDS:
        assert HOLDS[op](7, 7) == (assume({}, op, BYTE, BYTE, 1) is not None)


@pytest.mark.parametrize("op", ["add", "sub", "and", "or", "xor", "mul", "shl", "shr", "sar"])
def test_arithmetic_on_known_arguments_is_the_machines(op: str) -> None:
    """A term over system call arguments has the value that one byte of arithmetic gives."""
    for a, b in itertools.product(EDGES, EDGES):
        count = b & 31
        expected = {
            "add": a + b,
            "sub": a - b,
            "and": a & b,
            "or": a | b,
            "xor": a ^ b,
            "mul": a * b,
            "shl": a << count,
            "shr": a >> count,
            "sar": signed(a, 1) >> count,
        }[op] & 255
        left = sym("arg", 0, a)
        assert expected == binary(op, 1, a, b)
        assert expected == concrete(binary(op, 1, left, b))
        assert expected == concrete(binary(op, 1, left, sym("arg", 1, b)))


def test_unary_arithmetic_on_known_arguments() -> None:
    """Negation, inversion, truncation and sign extension."""
    for a in (*EDGES, 0x1FF, ALL64):
        term = sym("arg", 0, a)
        assert (-a & 255, ~a & 255) == (concrete(negate(1, term)), concrete(invert(1, term)))
        assert (a & 255, signed(a, 1) & ALL64) == (concrete(low(1, term)), concrete(sext(1, term)))


@pytest.mark.parametrize(
    ("expected", "term"),
    [
        (X, add(add(X, 8), -8)),
        (add(X, 12), add(add(X, 8), 4)),
        (low(1, X), low(1, low(4, X))),
        (low(4, X), binary("and", 8, X, mask(4))),
        (low(1, X), binary("and", 4, X, 0xFF)),
        (0, binary("and", 4, X, 0)),
        (0, binary("sub", 4, X, X)),
        (low(4, X), binary("or", 4, X, 0)),
        (mask(4), binary("or", 4, X, mask(4))),
        (0, binary("mul", 4, X, 0)),
        (low(4, X), negate(4, negate(4, X))),
        (low(4, add(X, 5)), low(4, add(low(4, X), 5))),
        (low(1, X), sext(4, low(1, X))),
        (binary("and", 4, X, 4), binary("and", 4, binary("and", 4, X, 6), 0xC)),
        (low(2, Y), low(2, sym("join", 2, low(2, Y), X))),
    ],
)
def test_equal_values_become_equal_terms(expected: Term, term: Term) -> None:
    """States that cannot be told apart must compare equal, whichever way they came about."""
    assert expected == term


def test_an_aligned_stack_pointer_counts_from_the_entry_value() -> None:
    """A frame that aligns its stack keeps its offsets."""
    stack = sym("init", 1, "rsp")
    assert add(stack, -32) == binary("and", 8, add(stack, -24), -16 & ALL64)


def test_a_single_tested_bit_is_known_from_not_zero() -> None:
    """``flags & 4`` that is not 0 is 4; a mask of two bits stays open."""
    one, two = binary("and", 4, X, 4), binary("and", 4, X, 6)
    facts_one, facts_two = assume({}, "ne", one, 0, 4), assume({}, "ne", two, 0, 4)
    assert facts_one is not None
    assert facts_two is not None
    assert (4, None) == (known(one, facts_one), known(two, facts_two))


def test_a_masked_or_shifted_value_cannot_exceed_its_bits() -> None:
    """What no comparison said, the term's own form says."""
    assert ((0, 6),) == domain(binary("and", 4, X, 6), {})
    assert ((0, 15),) == domain(binary("shr", 1, X, 4), {})
    assert assume({}, "ugt", binary("and", 4, X, 6), 6, 4) is None


def test_a_part_of_a_known_value_is_known() -> None:
    """The low byte of a number that is known in 8 bytes."""
    facts = assume({}, "eq", X, 0x1234, 8)
    assert facts is not None
    assert known(BYTE, facts) == 0x34


def test_facts_are_never_changed_in_place() -> None:
    """States share their facts."""
    before: Facts = {}
    assert assume(before, "eq", BYTE, 5, 1) is not None
    assert {} == before


def test_terms_know_what_they_are_made_of() -> None:
    """Parts, width, and whether a system call argument takes part."""
    term = binary("and", 4, sym("arg", 2, 6), 2)
    assert sym("arg", 2, 6) in parts(term)
    assert by_argument(term, X)
    assert not by_argument(X, 5)
    assert (1, 4, 8) == (width(BYTE), width(term), width(X))


def test_equal_terms_are_one_object_and_depth_is_bounded() -> None:
    """Terms are shared; one that nests too deep becomes a lost value."""
    assert sym("init", 1, "rdi") is X
    deep: Term = X
    for _ in range(MAX_DEPTH + 2):
        deep = sym("percpu", deep)
    assert not isinstance(deep, int)
    assert any(part[0] == "lost" for part in parts(deep))
