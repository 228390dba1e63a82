"""Small parts of a call: the source's parameter order, expressions' errors, constants' values."""

import pytest

from kwhy.emulate.call import parameter_names
from kwhy.emulate.constants import constants
from kwhy.emulate.expression import ExpressionError, Names, Out, Text, parse_call


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
