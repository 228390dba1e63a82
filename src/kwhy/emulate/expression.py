"""C-like expressions over the kernel's variables and types, evaluated with drgn's objects.

``FUNC(ARG, ...)`` where an argument is made of numbers, strings, variables, fields (``.``, ``->``),
indexes, ``*``, ``&``, casts, C's operators, ``NULL``, ``sizeof(TYPE)``, ``current``, ``task(PID)``,
``per_cpu(VARIABLE, CPU)`` and ``this_cpu(VARIABLE)``.  ``&NAME`` of a name that nothing has is an
out-parameter: memory for it is made, and shown after the call.
"""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from kwhy.errors import UsageError

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>0[xX][0-9a-fA-F]+|\d+)[uUlL]*(?!\w)
    |(?P<name>[A-Za-z_]\w*(?:\.(?:isra|constprop|part|cold)\.?\d*)*)
    |(?P<string>"(?:[^"\\]|\\.)*")|(?P<char>'(?:[^'\\]|\\(?:x[0-9a-fA-F]{2}|[0-7]{1,3}|.))')
    |(?P<sign>->|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^~!<>()\[\].,?:]))""",
    re.VERBOSE,
)
_TYPE = re.compile(
    r"\(\s*((?:(?:const|volatile|struct|union|enum|unsigned|signed|long|short|int|char|void|bool)\s+"
    r")*[A-Za-z_]\w*[\s*]*)\)"
)
_KEYWORDS = frozenset({"struct", "union", "enum", "unsigned", "signed", "long", "short", "int",
                       "char", "void", "bool", "const", "volatile"})  # fmt: skip
_LEVELS: tuple[tuple[str, ...], ...] = (
    ("||",), ("&&",), ("|",), ("^",), ("&",), ("==", "!="), ("<", ">", "<=", ">="), ("<<", ">>"),
    ("+", "-"), ("*", "/", "%"),
)  # fmt: skip
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
    "%": operator.mod, "&": operator.and_, "|": operator.or_, "^": operator.xor,
    "<<": operator.lshift, ">>": operator.rshift,
}  # fmt: skip
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt,
    "<=": operator.le, ">=": operator.ge,
}  # fmt: skip
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}
MAX_LENGTH = 4096
MAX_DEPTH = 32
_TOP = (1 << 64) - 1


class ExpressionError(UsageError):
    """What is wrong with an expression, with a caret under the place."""

    def __init__(self, text: str, at: int, why: str) -> None:
        super().__init__(f"{why}\n  {text}\n  {' ' * at}^")


@dataclass(frozen=True, slots=True)
class Text:
    """A string argument: memory with these bytes is made, its address is passed."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Out:
    """``&NAME`` of an unknown name: memory of the parameter's type is made."""

    name: str


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument as it was written, and its value: a drgn object, a Text or an Out."""

    text: str
    value: Any
    at: int


@dataclass(frozen=True, slots=True)
class Call:
    """``name(arguments)``; ``at`` of an argument counts columns of the whole text from 0."""

    text: str
    name: str
    arguments: tuple[Argument, ...]


@dataclass(slots=True)
class Names:
    """What an expression can refer to. Lookups raise LookupError."""

    program: Any
    address: Callable[[str], int | None]
    """Of a symbol without a type."""
    task: Callable[[int], int]
    """The task_struct of a process number, by address."""
    current: int
    percpu_base: Callable[[int], int]
    is_percpu: Callable[[int], bool]
    """Whether an address is that of a per-CPU variable's template."""
    cpu: int
    constants: dict[str, int] = field(default_factory=dict)
    """Names that only an interface knows, such as O_RDONLY."""
    given: Callable[[str], Any] = lambda _name: None
    """The caller's own variables as drgn objects, before the kernel's; None for others."""


def parse_call(text: str, names: Names) -> Call:
    """Parse and evaluate ``FUNC(ARG, ...)``. Raises ExpressionError."""
    parser = _Parser(text, names)
    return parser.call()


def parse_expression(text: str, names: Names) -> Any:
    """The value of one expression as a drgn object. Raises ExpressionError."""
    parser = _Parser(text, names)
    value = parser.expression()
    parser.finish()
    return value


class _Parser:
    def __init__(self, text: str, names: Names) -> None:
        if len(text) > MAX_LENGTH:
            raise UsageError(f"the expression is longer than {MAX_LENGTH} characters")
        self.text, self.names = text, names
        self.at = 0
        self.kind, self.token, self.start = "", "", 0
        self._depth = 0
        self._next()

    # -- tokens ------------------------------------------------------------------------------------

    def _next(self) -> None:
        rest = self.text[self.at :]
        if not rest.strip():
            self.kind, self.token, self.start = "end", "", len(self.text)
            return
        match = _TOKEN.match(self.text, self.at)
        if match is None:
            at = self.at + len(rest) - len(rest.lstrip())
            raise ExpressionError(self.text, at, f"{rest.strip()[0]!r} has no meaning here")
        self.kind = match.lastgroup or ""
        self.token, self.start, self.at = match[self.kind], match.start(self.kind), match.end()

    def _fail(self, why: str, at: int | None = None) -> ExpressionError:
        return ExpressionError(self.text, self.start if at is None else at, why)

    def _expect(self, sign: str) -> None:
        if self.token != sign or self.kind != "sign":
            found = repr(self.token) if self.token else "the end"
            raise self._fail(f"expected {sign!r}, found {found}")
        self._next()

    # -- the grammar -------------------------------------------------------------------------------

    def finish(self) -> None:
        """Raises ExpressionError unless all of the text was understood."""
        if self.kind != "end":
            raise self._fail("nothing may follow here")

    def call(self) -> Call:
        name = self.token
        if self.kind != "name":
            raise self._fail("expected a function: FUNC(ARG, ...)")
        self._next()
        self._expect("(")
        arguments: list[Argument] = []
        while self.token != ")" or self.kind != "sign":
            if arguments:
                self._expect(",")
            start = self.start
            value = self._argument()
            end = self.start if self.kind != "end" else len(self.text)
            arguments.append(Argument(self.text[start:end].strip(), value, start))
        self._expect(")")
        self.finish()
        return Call(self.text, name, tuple(arguments))

    def _argument(self) -> Any:
        if self.kind == "string":
            data = _unescaped(self.token[1:-1])
            self._next()
            return Text(data + b"\0")
        if self.token == "&":
            match = re.match(r"\s*([A-Za-z_]\w*)\s*[,)]", self.text[self.at :])
            if match and not self._known(match[1]):
                self._next()
                self._next()
                return Out(match[1])
        return self.expression()

    def expression(self, level: int = 0) -> Any:
        if level == len(_LEVELS):
            return self._unary()
        left = self.expression(level + 1)
        while self.kind == "sign" and self.token in _LEVELS[level]:
            sign, start = self.token, self.start
            self._next()
            right = self.expression(level + 1)
            left = self._do(start, partial(_binary, left, sign, right))
        return left

    def _unary(self) -> Any:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._fail("nested too deeply")
        try:
            return self._unary_inner()
        finally:
            self._depth -= 1

    def _unary_inner(self) -> Any:
        sign, start = self.token, self.start
        if self.kind == "sign" and sign in ("&", "*", "-", "+", "~", "!"):
            if sign == "&" and (found := self._untyped()) is not None:
                return found
            self._next()
            value = self._unary()
            return self._do(start, lambda: _prefix(sign, value))
        if sign == "(" and (kind := self._cast()) is not None:
            value = self._unary()
            return self._do(start, lambda: _cast(kind, value))
        return self._postfix(self._primary())

    def _cast(self) -> Any:
        """The type in brackets at this place, consumed; None if it is no cast."""
        match = _TYPE.match(self.text, self.start)
        if match is None:
            return None
        words = match[1].replace("*", " * ").split()
        try:
            kind = self.names.program.type(" ".join(words))
        except LookupError:
            if words[0] in _KEYWORDS or words[-1] == "*":
                raise self._fail(f"no type is called {' '.join(words)!r}") from None
            return None
        except (SyntaxError, ValueError):
            return None
        self.at = match.end()
        self._next()
        return kind

    def _postfix(self, value: Any) -> Any:
        while self.kind == "sign" and self.token in (".", "->", "["):
            sign, start = self.token, self.start
            self._next()
            if sign == "[":
                index = self.expression()
                self._expect("]")
                value = self._do(start, partial(operator.getitem, value, index))
                continue
            if self.kind != "name":
                raise self._fail("expected the name of a field")
            name, start = self.token, self.start
            self._next()
            value = self._do(start, partial(value.member_, name))
        return value

    def _primary(self) -> Any:
        import drgn

        kind, token, start = self.kind, self.token, self.start
        program = self.names.program
        if kind == "number":
            self._next()
            number = int(token, 0) if token[:2] in ("0x", "0X") else int(token, _base(token))
            if number >= 1 << 64:
                raise self._fail("the number does not fit in 64 bits", start)
            name = "int" if number < 1 << 31 else "long" if number < 1 << 63 else "unsigned long"
            return drgn.Object(program, program.type(name), number)
        if kind == "char":
            self._next()
            return drgn.Object(program, program.type("char"), _unescaped(token[1:-1])[0])
        if token == "(" and kind == "sign":
            self._next()
            value = self.expression()
            self._expect(")")
            return value
        if kind == "string":
            raise self._fail("a string can only be a whole argument")
        if kind != "name":
            raise self._fail("expected a value" if token else "the expression ends too early")
        self._next()
        return self._named(token, start)

    # -- names -------------------------------------------------------------------------------------

    def _named(self, name: str, start: int) -> Any:
        import drgn

        program = self.names.program
        if self.token == "(" and self.kind == "sign":
            return self._builtin(name, start)
        if name == "NULL":
            return drgn.Object(program, program.type("void *"), 0)
        if name in ("true", "false"):
            return drgn.Object(program, program.type("int"), int(name == "true"))
        if name == "current":
            return self._task(self.names.current)
        if name in self.names.constants:
            return drgn.Object(program, program.type("int"), self.names.constants[name])
        if (own := self._do(start, lambda: self.names.given(name))) is not None:
            return own
        if (found := self._object(name)) is not None:
            return found
        if self.names.address(name) is not None:
            why = f"the type of {name} is not known without debug info: write *(TYPE *)&{name}"
            raise self._fail(why, start)
        raise self._fail(f"nothing in this kernel is called {name!r}", start)

    def _untyped(self) -> Any:
        """``&NAME`` of a symbol whose type is not known, as ``void *``; None otherwise."""
        import drgn

        match = re.match(r"\s*([A-Za-z_]\w*)(?!\s*(?:\.|->|\[|\(|\w))", self.text[self.at :])
        if match is None or self._typed(match[1]):
            return None
        address = self.names.address(match[1])
        if address is None:
            return None
        self._next()
        self._next()
        program = self.names.program
        return drgn.Object(program, program.type("void *"), address)

    def _typed(self, name: str) -> bool:
        if self.names.given(name) is not None:
            return True
        return self._object(name) is not None

    def _object(self, name: str) -> Any:
        """The kernel's variable, function or constant; None also where it is optimised out."""
        try:
            found = self.names.program[name]
        except (KeyError, LookupError):
            return None
        return None if found.absent_ else found

    def _known(self, name: str) -> bool:
        return self._typed(name) or self.names.address(name) is not None or name == "current"

    def _builtin(self, name: str, start: int) -> Any:
        import drgn

        program = self.names.program
        self._next()
        if name == "sizeof":
            match = re.compile(r"[^()]*").match(self.text, self.start)
            text = match[0].strip() if match else ""
            size = self._do(start, lambda: drgn.sizeof(program.type(text)))
            self.at = match.end() if match else self.at
            self._next()
            self._expect(")")
            return drgn.Object(program, program.type("unsigned long"), size)
        if name not in ("task", "per_cpu", "this_cpu"):
            raise self._fail(f"{name}() cannot be called inside of an expression", start)
        first = self.expression()
        cpu = self.names.cpu
        if name == "per_cpu":
            self._expect(",")
            cpu = self._integer(self.expression(), start)
        self._expect(")")
        if name == "task":
            number = self._integer(first, start)
            return self._task(self._do(start, lambda: self.names.task(number)))
        return self._do(start, lambda: self._percpu(first, cpu))

    def _task(self, address: int) -> Any:
        import drgn

        program = self.names.program
        return drgn.Object(program, program.type("struct task_struct *"), address)

    def _percpu(self, value: Any, cpu: int) -> Any:
        """A CPU's copy of a per-CPU variable, or of what a per-CPU pointer points to."""
        import drgn

        base = self.names.percpu_base(cpu)
        if value.address_ is not None and self.names.is_percpu(value.address_):
            address = (value.address_ + base) & _TOP
            return drgn.Object(value.prog_, value.type_, address=address)
        return drgn.Object(value.prog_, value.type_, (value.value_() + base) & _TOP)

    def _integer(self, value: Any, at: int) -> int:
        return int(self._do(at, value.__index__))

    def _do(self, at: int, action: Callable[[], Any]) -> Any:
        """What drgn does, its objections as ours."""
        import drgn

        try:
            return action()
        except drgn.FaultError as error:
            raise self._fail(f"memory cannot be read: {error}", at) from error
        except (TypeError, ValueError, AttributeError, LookupError, ZeroDivisionError,
                OverflowError, IndexError, drgn.OutOfBoundsError,
                drgn.ObjectAbsentError) as error:  # fmt: skip
            text = str(error.args[0]) if error.args else type(error).__name__
            raise self._fail(text, at) from error


def _base(token: str) -> int:
    return 8 if len(token) > 1 and token[0] == "0" else 10


def _unescaped(text: str) -> bytes:
    def plain(match: re.Match[str]) -> str:
        if match[2]:
            return chr(int(match[2], 16))
        if match[3]:
            return chr(int(match[3], 8) & 0xFF)
        return _ESCAPES.get(match[1], match[1])

    return re.sub(r"\\(x([0-9a-fA-F]{2})|([0-7]{1,3})|.)", plain, text).encode("latin-1", "replace")


def _prefix(sign: str, value: Any) -> Any:
    import drgn

    if sign == "&":
        return value.address_of_()
    if sign == "*":
        return value[0]
    if sign == "-":
        return -value
    if sign == "~":
        return ~value
    if sign == "!":
        return drgn.Object(value.prog_, value.prog_.type("int"), int(not value))
    return +value


def _binary(a: Any, sign: str, b: Any) -> Any:
    import drgn

    if sign in ("&&", "||"):
        truth = (bool(a) and bool(b)) if sign == "&&" else (bool(a) or bool(b))
    elif sign in _COMPARISONS:
        truth = bool(_COMPARISONS[sign](a, b))
    else:
        return _ARITHMETIC[sign](a, b)
    return drgn.Object(a.prog_, a.prog_.type("int"), int(truth))


def _cast(kind: Any, value: Any) -> Any:
    import drgn

    return drgn.cast(kind, value)
