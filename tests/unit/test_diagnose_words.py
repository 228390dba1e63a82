"""Machine terms in the source's words, by types alone."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.unit.flow_build import ARCH, GAP, TOY, Machine, toy

from kwhy.diagnose.words import Words, errno_of, number, oriented, readable
from kwhy.flow.cfg import Code
from kwhy.flow.explore import Callee
from kwhy.flow.origin import Tracer
from kwhy.flow.terms import Facts, Term, add, assume, binary, low, mask, negate, sext, sym
from kwhy.kernel.types import Member, Prototype, TypeRef
from kwhy.record.model import Call


def ref(name: str) -> TypeRef:
    """A type by its C name."""
    return TypeRef("test", name)


class Kinds:
    """``struct tty { int count; struct tty *link; enum mode mode; int *counts; int slots[2]; }``
    and functions that use it."""

    FIELDS = {
        0: ("count", "int"), 8: ("link", "struct tty *"), 16: ("mode", "enum mode"),
        24: ("counts", "int *"), 32: ("slots[0]", "int"), 36: ("slots[1]", "int"),
    }  # fmt: skip

    def prototype(self, function: str, module: str | None = None) -> Prototype | None:
        """f(struct tty *tty, unsigned int flags), struct tty *g(void), and f as a system call."""
        tty, flags = ("tty", ref("struct tty *")), ("flags", ref("unsigned int"))
        return {
            "f": Prototype((tty, flags), ref("int")),
            "g": Prototype((), ref("struct tty *")),
            "__do_sys_open": Prototype(
                (("path", ref("char *")), ("mode", ref("int"))), ref("long")
            ),
        }.get(function)

    def deref(self, type: TypeRef) -> TypeRef | None:
        """Behind a pointer."""
        return ref(str(type.key)[:-2]) if str(type.key).endswith(" *") else None

    def is_struct(self, type: TypeRef) -> bool:
        """By name."""
        return str(type.key) == "struct tty"

    def is_pointer(self, type: TypeRef) -> bool:
        """By name."""
        return str(type.key).endswith("*")

    def is_signed(self, type: TypeRef) -> bool:
        """By name."""
        return str(type.key) in ("int", "long")

    def size(self, type: TypeRef) -> int | None:
        """Of the numbers and characters."""
        return {"int": 4, "char": 1}.get(str(type.key), 8)

    def member(self, type: TypeRef, byte_offset: int, size: int) -> list[Member]:
        """The field that begins there."""
        found = self.FIELDS.get(byte_offset)
        return [Member(found[0], ref(found[1]), byte_offset, size)] if found else []

    def enumerators(self, type: TypeRef) -> dict[int, str]:
        """Of enum mode."""
        return {1: "MODE_RAW"} if type.key == "enum mode" else {}

    def percpu(self, offset: int) -> tuple[str, TypeRef] | None:
        """One variable."""
        return ("pcpu_hot.current_task", ref("struct tty *")) if offset == 0x20 else None

    def variable(self, name: str, module: str | None = None) -> TypeRef | None:
        """Of the globals."""
        return {"limit": ref("int"), "console": ref("struct tty")}.get(name)


@pytest.fixture(scope="module")
def words() -> Words:
    """Names for frame 1, a call of f that called g."""
    machine: Machine = toy(f="c3", g="c3", limit="00" * 8, console="00" * 32)

    def prototype(address: int) -> Prototype | None:
        symbol = machine.at(address)
        return Kinds().prototype(symbol.name) if symbol else None

    kernel = SimpleNamespace(symbols=machine, types=Kinds(), prototype=prototype)
    tracer = Tracer(Code(machine, ARCH))
    function = tracer.code.function(TOY)
    tracer.frames[0] = (Call(TOY, None, 0), tracer.code.function(TOY), ())
    tracer.frames[1] = (Call(TOY, None, 0), function, [Callee(TOY + GAP, None)])
    return Words(cast(Any, kernel), tracer, ARCH)


def memory(address: Term, size: int) -> Term:
    """What lies at an address."""
    return sym("mem", address, size, (1, 0))


TTY, FLAGS, RET = sym("init", 1, "rdi"), sym("init", 1, "rsi"), sym("ret", 1, 0)
LINK = memory(add(TTY, 8), 8)
FOURS, EIGHTS = binary("shl", 8, FLAGS, 2), binary("shl", 8, FLAGS, 3)
COUNTS = memory(add(TTY, 24), 8)


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (5, "5"),
        (TTY, "tty"),
        (low(4, FLAGS), "flags"),
        (sext(4, FLAGS), "flags"),
        (sym("init", 1, "rbx"), "rbx"),
        (memory(TTY, 4), "tty->count"),
        (LINK, "tty->link"),
        (memory(add(LINK, 16), 4), "tty->link->mode"),
        (memory(add(TTY, 40), 4), "*(tty+0x28)"),
        (memory(binary("add", 8, COUNTS, FOURS), 4), "tty->counts[flags]"),
        (memory(add(binary("add", 8, COUNTS, FOURS), 8), 4), "tty->counts[flags + 2]"),
        (memory(binary("add", 8, COUNTS, EIGHTS), 4), "*((tty->counts + (flags << 3))+0x0)"),
        (memory(add(binary("add", 8, TTY, FOURS), 32), 4), "tty->slots[flags]"),
        (memory(add(binary("add", 8, TTY, EIGHTS), 0), 4), "tty[flags].count"),
        (add(TTY, 8), "&tty->link"),
        (add(low(8, FLAGS), -3), "(flags - 3)"),
        (RET, "g()"),
        (memory(RET, 4), "g()->count"),
        (sym("ret", 1, ("u", 4, 0)), "?"),
        (binary("and", 4, FLAGS, 0x10), "(flags & 0x10)"),
        (binary("shr", 4, FLAGS, 2), "(flags >> 2)"),
        (negate(4, FLAGS), "-flags"),
        (memory(sym("percpu", 0x20), 8), "current"),
        (memory(sym("percpu", 0x28), 8), "percpu"),
        (memory(TOY + 2 * GAP, 4), "limit"),
        (memory(TOY + 2 * GAP + 4, 4), "limit+0x4"),
        (memory(TOY + 3 * GAP + 8, 8), "console.link"),
        (memory(add(sym("init", 1, "rsp"), -16), 4), "stack-0x10"),
        (sym("lost", 1, 0), "?"),
        (sym("arg", 2, 7), "argument 3"),
    ],
)
def test_a_term_reads_like_the_source(words: Words, term: Term, expected: str) -> None:
    """Arguments, fields, results, globals, per-CPU variables, arithmetic."""
    assert expected == words.name(term)[0]


def test_a_system_call_argument_has_the_name_of_its_own_function() -> None:
    """__x64_sys_open's wrapper has only registers; __do_sys_open names them."""
    machine = toy(__x64_sys_open="c3")
    tracer = Tracer(Code(machine, ARCH))
    tracer.frames[0] = (Call(TOY, None, 0), tracer.code.function(TOY), ())
    kernel: Any = SimpleNamespace(symbols=machine, types=Kinds())
    assert "mode" == Words(kernel, tracer, ARCH).name(sym("arg", 1, 7))[0]


@pytest.mark.parametrize(
    ("condition", "taken", "expected"),
    [
        (("eq", memory(TTY, 4), 0, 4), True, "tty->count == 0"),
        (("eq", memory(TTY, 4), 0, 4), False, "tty->count != 0"),
        (("slt", memory(TTY, 4), mask(4) - 4, 4), True, "tty->count < -EIO"),
        (("ne", LINK, 0, 8), False, "tty->link == NULL"),
        (("ugt", RET, mask(8) - 4095, 8), True, "IS_ERR(g())"),
        (("ugt", RET, mask(8) - 4095, 8), False, "!IS_ERR(g())"),
        (("eq", memory(add(TTY, 16), 4), 1, 4), True, "tty->mode == MODE_RAW (1)"),
        (("ult", 3, low(4, FLAGS), 4), True, "3 < flags"),
        (None, True, "?"),
    ],
)
def test_a_condition_reads_like_c(words: Words, condition: Any, taken: bool, expected: str) -> None:
    """Values by type: NULL, error numbers, enumerators."""
    assert expected == words.condition(condition, taken)


@pytest.mark.parametrize(
    ("op", "value", "term", "size", "expected"),
    [
        ("eq", 7, low(4, FLAGS), 4, "7"),
        ("eq", -5, memory(TTY, 4), 4, "-EIO"),
        ("ne", 0, LINK, 8, "not NULL"),
        ("ne", 0, low(4, FLAGS), 4, "not 0"),
        ("uge", -4095, LINK, 8, "an error pointer"),
        ("uge", -4095, memory(TTY, 4), 4, "an error number"),
        ("slt", 0, memory(TTY, 4), 4, "negative"),
        ("ult", 4, low(4, FLAGS), 4, "0 … 3"),
        ("uge", 0, low(4, FLAGS), 4, None),
    ],
)
def test_what_is_known_of_a_value_is_said_in_words(
    words: Words, op: str, value: int, term: Term, size: int, expected: str | None
) -> None:
    """Exact values, ranges, and the ranges that have names."""
    facts: Facts | None = assume({}, op, term, value & mask(size), size)
    assert facts is not None
    assert expected == words.known(term, facts, size)


def test_an_order_that_did_not_hold_is_told_as_its_inverse() -> None:
    """Every comparison has one; twice inverted it is itself."""
    for op in ("eq", "ne", "ult", "ule", "ugt", "uge", "slt", "sle", "sgt", "sge"):
        once = oriented((op, FLAGS, 1, 4), False)
        assert (op, FLAGS, 1, 4) == oriented(once, False) != once
        assert (op, FLAGS, 1, 4) == oriented((op, FLAGS, 1, 4), True)


def test_numbers_and_error_numbers() -> None:
    """Decimal while small, hex when large; only error numbers have names."""
    assert ("65535", "0x10000", "-5") == (number(65535), number(65536), number(-5))
    assert ("-EIO", None, None) == (errno_of(-5), errno_of(5), errno_of(-5000))


def test_what_says_nothing_to_a_reader_is_not_readable() -> None:
    """Raw offsets and lost values are left out of a verdict."""
    assert ([True, False, False, False]) == [
        readable(text) for text in ("tty->count", "*(tty+0x28)", "?", "stack-0x10")
    ]
