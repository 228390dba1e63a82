"""Small parts of a call: the source's parameter order, expressions' errors, constants' values."""

import pytest

from kwhy.emulate.callee import parameter_names
from kwhy.emulate.constants import constants
from kwhy.emulate.expression import parse_call, parse_expression
from kwhy.emulate.names import ExpressionError, Names, Out, Text
from kwhy.emulate.passing import Passed, arranged


def names(**known: int) -> Names:
    """Expressions over no kernel: drgn with no debug info, and some symbols."""
    import drgn

    flags = drgn.PlatformFlags.IS_64_BIT | drgn.PlatformFlags.IS_LITTLE_ENDIAN
    return Names(
        program=drgn.Program(drgn.Platform(drgn.Architecture.X86_64, flags)),
        address=known.get,
        task=lambda number: 0x1000 + number,
        current=0x1000,
        percpu_base=lambda cpu: cpu << 20,
        is_percpu=lambda address: address < 4096,
        cpu=0,
    )


def test_parameters_are_read_from_the_definition_not_from_a_call() -> None:
    """A call inside of an if looks alike; only the definition stands at the line's start."""
    text = (
        "static bool f(int a);\n"
        "int g(void)\n{\n\tif (f(x)) {\n\t}\n}\n"
        "bool f(struct trace_buffer *buffer,\n\tint cpus[2])\n{\n}\n"
    )
    assert ["buffer", "cpus"] == parameter_names(text, "f")
    assert parameter_names(text, "h") is None


def test_arguments_are_evaluated_as_c_does() -> None:
    """Precedence, bases, characters, strings and out-parameters."""
    call = parse_call("f(1 + 2 * 3, 0x10 | 07, 'a' == 97, -1 < 2 && !0, \"x\\n\", &out)", names())
    values = [a.value for a in call.arguments]
    assert [7, 23, 1, 1] == [int(v.value_()) for v in values[:4]]
    assert Text(b"x\n\0") == values[4]
    assert Out("out") == values[5]
    assert ["1 + 2 * 3", "0x10 | 07"] == [a.text for a in call.arguments[:2]]


def test_a_symbol_without_a_type_is_an_address() -> None:
    """&NAME of a known symbol is no out-parameter."""
    call = parse_call("f(&thing)", names(thing=0xFF00))
    assert 0xFF00 == call.arguments[0].value.value_()


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("0x10UL", "unsigned long", 16),
        ("0xffffffff", "unsigned int", 0xFFFFFFFF),
        ("4294967295", "long", 0xFFFFFFFF),
        ("0xffUL << 40", "unsigned long", 0xFF << 40),
        ("~0UL", "unsigned long", (1 << 64) - 1),
        ("0b101", "int", 5),
        ("-5 % 3", "int", -2),
        ("1 ? 2 : 3", "int", 2),
        ("0 ? 1 : 0 ? 2 : 3", "int", 3),
        ("NULL == 0", "int", 1),
        ("sizeof(long)", "unsigned long", 8),
        ("(char)300", "char", 44),
        ("(void (*)(int))16 != NULL", "int", 1),
        ("g(1 + 1) + 1", "int", 7),
        ("EINVAL", "int", 22),
        ("*(int *)0 == 0 && 0 ? 1 : 2", "", None),
    ],
)
def test_expressions_have_the_types_and_values_of_c(
    text: str, kind: str, value: int | None
) -> None:
    """Suffixes, promotions, the conditional operator, calls within (here they add four)."""
    known = names()
    known.run = lambda call: call.arguments[0].value + 4
    known.macros = constants
    if value is None:
        with pytest.raises(ExpressionError, match="memory"):
            parse_expression(text, known)
        return
    found = parse_expression(text, known)
    assert (kind, value) == (found.type_.type_name(), int(found.value_()))


def test_memory_is_made_for_what_needs_an_address() -> None:
    """Strings inside of an expression; out-parameters whose type is said."""
    made: list[bytes] = []

    def make(data: bytes) -> int:
        made.append(data)
        return 0x5000

    known = names()
    known.make = make
    call = parse_call('f((long *)"ab" "c", (int *)&out, "é", "x")', known)
    first, out, text, last = (a.value for a in call.arguments)
    assert [b"abc\0"] == made
    assert 0x5000 == first.value_()
    assert ("out", "int *") == (out.name, out.type.type_name())
    assert [Text(b"\xc3\xa9\0"), Text(b"x\0")] == [text, last]


def test_which_function_is_meant() -> None:
    """By source file, module or address; through an expression."""
    call = parse_call("f@net/core/dev.c(1)", names())
    assert ("f", "net/core/dev.c") == (call.name, call.where)
    call = parse_call("(0xff00)(1)", names())
    assert 0xFF00 == int(call.target.value_())


def test_an_error_shows_the_place_only() -> None:
    """Of a long text, whatever is in it: one line, the caret below."""
    with pytest.raises(ExpressionError) as caught:
        parse_call("f(" + "1 + " * 500 + "\n@)", names())
    lines = str(caught.value).splitlines()
    assert 3 == len(lines)
    assert "@" == lines[1][lines[2].index("^")]
    assert 120 > len(lines[1])


def test_structures_are_passed_as_the_abi_says() -> None:
    """One or two words go into registers when all of them fit, larger ones onto the stack."""
    small = Passed("a", 1, None, (2,))
    large = Passed("b", 3, None, (4, 5))
    numbers = [Passed("n", 9, None)] * 5
    assert [7, 1, 2] == arranged([small], hidden=7)
    assert [1, 2, 0, 0, 0, 0, 3, 4, 5] == arranged([small, large])
    assert [9, 9, 9, 9, 9, 8, 1, 2] == arranged([*numbers, small, Passed("n", 8, None)])


@pytest.mark.parametrize(
    ("text", "column", "why"),
    [
        ("f(", 2, "ends too early"),
        ("f(1", 3, "expected ','"),
        ("f(1))", 4, "nothing may follow"),
        ("f(@)", 2, "no meaning"),
        ("f(nothing)", 2, "called 'nothing'"),
        ("f((struct nothing *)0)", 2, "no type is called"),
        ("3(1)", 0, "expected a function"),
        ("f(1/0)", 3, ""),
        ("f(g(1))", 2, "cannot be called inside"),
        ("f(99999999999999999999)", 2, "64 bits"),
        ("f(" + "(" * 500 + "1", 0, ""),
        ("f(08)", 2, "octal"),
        ("f(1 << 40)", 4, "cannot be shifted by 40"),
        ("f(1 ? 2)", 7, "expected ':'"),
        ("f(NOTHING)", 2, "macro"),
        ("f(\tnothing)", 3, "called 'nothing'"),
        ("f(日本, 1)", 2, "no meaning"),
        ("f", 1, "FUNC(ARG, ...)"),
    ],
)
def test_errors_point_to_their_place(text: str, column: int, why: str) -> None:
    """The caret stands under what is wrong."""
    with pytest.raises(ExpressionError) as caught:
        parse_call(text, names())
    lines = str(caught.value).splitlines()
    assert why in lines[0]
    if column:
        assert " " * (2 + column) + "^" == lines[2]


def test_constants_have_the_interface_values() -> None:
    """O_RDWR and friends, signed where the interface is."""
    found = constants()
    assert (2, -100, 9) == (found["O_RDWR"], found["AT_FDCWD"], found["SIGKILL"])
