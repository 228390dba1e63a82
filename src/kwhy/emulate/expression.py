"""C-like expressions over the kernel's variables and types, evaluated with drgn's objects.

``FUNC(ARG, ...)`` where an argument is made of numbers, strings, variables, fields (``.``, ``->``),
indexes, ``*``, ``&``, casts, C's operators, ``NULL``, ``sizeof(TYPE)``, ``current``, ``task(PID)``,
``per_cpu(VARIABLE, CPU)`` and ``this_cpu(VARIABLE)``.  ``&NAME`` of a name that nothing has is an
out-parameter: memory for it is made, and shown after the call.
"""

import operator
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from kwhy.emulate import operations
from kwhy.emulate.names import Argument, Call, ExpressionError, Names, Out, Text
from kwhy.errors import UsageError

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>(?:0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)[uUlL]*(?!\w))
    |(?P<name>[A-Za-z_]\w*(?:\.(?:isra|constprop|part|cold)\.?\d*)*)
    |(?P<string>"(?:[^"\\]|\\.)*")|(?P<char>'(?:[^'\\]|\\(?:x[0-9a-fA-F]{1,2}|[0-7]{1,3}|.))')
    |(?P<sign>->|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^~!<>()\[\]{}.,?:=@]))""",
    re.VERBOSE | re.DOTALL,
)
_KEYWORDS = frozenset({"struct", "union", "enum", "unsigned", "signed", "long", "short", "int",
                       "char", "void", "bool", "const", "volatile", "_Bool"})  # fmt: skip
_LEVELS: tuple[tuple[str, ...], ...] = (
    ("||",), ("&&",), ("|",), ("^",), ("&",), ("==", "!="), ("<", ">", "<=", ">="), ("<<", ">>"),
    ("+", "-"), ("*", "/", "%"),
)  # fmt: skip
_FILE = re.compile(r"@([\w./+-]+)")
MAX_LENGTH = 4096
MAX_DEPTH = 32
_TOP = (1 << 64) - 1


_PERCPU = ("per_cpu", "per_cpu_ptr", "this_cpu", "this_cpu_ptr", "raw_cpu_ptr", "this_cpu_read")
_ENTRIES = {"list_entry": "", "hlist_entry": "", "rb_entry": "", "llist_entry": "",
            "list_first_entry": "next", "list_last_entry": "prev"}  # fmt: skip
"""Kinds of container_of(), and the member of their first argument that points to the node."""


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
        """``FUNC(ARG, ...)``, ``FUNC@FILE(ARG, ...)`` or ``EXPR(ARG, ...)``, and nothing behind."""
        name, at = self.token, self.start
        target = None
        if self.kind == "name" and re.match(r"\s*[(@]|\s*$", self.text[self.at :]):
            self._next()
        elif self.kind in ("name", "sign"):
            name, target = "", self._postfix(self._primary())
        else:
            raise self._fail("expected a function: FUNC(ARG, ...)")
        where = self._where()
        if self.token != "(" or self.kind != "sign":
            found = repr(self.token) if self.token else "the end"
            raise self._fail(f"expected '(', found {found}: what is called is FUNC(ARG, ...)")
        call = self._called(name, at, where, target)
        self.finish()
        return call

    def _where(self) -> str | None:
        """What stands behind an @, consumed."""
        if self.token != "@":
            return None
        match = _FILE.match(self.text, self.start)
        if match is None:
            raise self._fail("expected a source file, a module or an address behind the @")
        self.at = match.end()
        self._next()
        return match[1]

    def _called(self, name: str, at: int, where: str | None = None, target: Any = None) -> Call:
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
        return Call(self.text, name, tuple(arguments), at, where, target)

    def _argument(self) -> Any:
        if self.kind == "string" and re.match(r"\s*[,)]", self.text[self.at :]):
            return Text(self._string())
        place = (self.at, self.kind, self.token, self.start)
        kind = self._cast() if self.token == "(" and self.kind == "sign" else None
        if self.token == "&":
            match = re.match(r"\s*([A-Za-z_]\w*)\s*[,)]", self.text[self.at :])
            if match and not self._known(match[1]):
                self._next()
                self._next()
                return Out(match[1], kind)
        self.at, self.kind, self.token, self.start = place
        return self.expression()

    def _string(self) -> bytes:
        """A string's bytes with their end, adjacent ones put together; consumed."""
        data = b""
        while self.kind == "string":
            data += operations.unescaped(self.token[1:-1])
            self._next()
        return data + b"\0"

    def expression(self) -> Any:
        """With ``a ? b : c``, of which the part that is not chosen is evaluated lazily."""
        condition = self._binary()
        if self.token != "?" or self.kind != "sign":
            return condition
        start = self.start
        self._deeper()
        self._next()
        yes = self.expression()
        self._expect(":")
        no = self.expression()
        self._depth -= 1
        return yes if self._do(start, lambda: bool(condition)) else no

    def _binary(self, level: int = 0) -> Any:
        if level == len(_LEVELS):
            return self._unary()
        left = self._binary(level + 1)
        while self.kind == "sign" and self.token in _LEVELS[level]:
            sign, start = self.token, self.start
            self._next()
            right = self._binary(level + 1)
            left = self._do(start, partial(operations.binary, left, sign, right))
        return left

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._fail("nested too deeply")

    def _unary(self) -> Any:
        self._deeper()
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
            if sign == "&" and (made := self._literal()) is not None:
                return self._placed(made)
            value = self._unary()
            return self._do(start, lambda: operations.prefix(sign, value))
        if sign == "(" and self.kind == "sign" and (kind := self._cast()) is not None:
            if self.token == "{":
                return self._postfix(self._compound(kind, start))
            value = self._unary()
            return self._do(start, lambda: operations.cast(kind, value))
        return self._postfix(self._primary())

    def _literal(self) -> Any:
        """``(TYPE){...}`` at this place, consumed; None for anything else."""
        place = (self.at, self.kind, self.token, self.start)
        if self.token == "(" and (kind := self._cast()) is not None and self.token == "{":
            return self._compound(kind, place[3])
        self.at, self.kind, self.token, self.start = place
        return None

    def _placed(self, value: Any) -> Any:
        """The address of memory made for ``(TYPE){...}``."""
        import drgn

        if self.names.make is None:
            raise self._fail("no memory can be made here")
        program = self.names.program
        address = self.names.make(value.to_bytes_())
        return drgn.Object(program, program.pointer_type(value.type_), address)

    def _compound(self, kind: Any, start: int) -> Any:
        """``{...}`` behind a type as an object of it."""
        values = self._braces()
        return self._do(start, lambda: operations.compound(kind, self.names.program, values))

    def _braces(self) -> operations.Values:
        """Values in braces, each with its member's name or without; they may be such lists."""
        self._deeper()
        values: operations.Values = []
        self._expect("{")
        while self.token != "}" or self.kind != "sign":
            if values:
                self._expect(",")
            name = None
            if self.token == "." and self.kind == "sign":
                self._next()
                name = self.token
                self._next()
                self._expect("=")
            inner = self._braces() if self.token == "{" else self.expression()
            values.append((name, inner))
        self._expect("}")
        self._depth -= 1
        return values

    def _cast(self) -> Any:
        """The type in brackets at this place, consumed; None if it is no cast."""
        found = self._type_in_brackets()
        if found is None:
            return None
        text, end = found
        words = text.replace("*", " * ").split()
        try:
            kind = operations.type_named(self.names.program, text)
        except LookupError:
            if words[0] in _KEYWORDS or words[-1] == "*":
                raise self._fail(f"no type is called {' '.join(words)!r}") from None
            return None
        except (SyntaxError, ValueError):
            return None
        self.at = end
        self._next()
        return kind

    def _type_in_brackets(self) -> tuple[str, int] | None:
        """What may be a type name between the bracket at this place and its partner, and the place
        behind; None for what is none."""
        depth = 0
        for at in range(self.start, len(self.text)):
            depth += (self.text[at] == "(") - (self.text[at] == ")")
            if not depth:
                text = self.text[self.start + 1 : at]
                return (text, at + 1) if re.match(r"\s*[A-Za-z_][\w\s*()\[\],]*$", text) else None
        return None

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
            return self._do(start, lambda: operations.integer(program, token))
        if kind == "char":
            self._next()
            data = operations.unescaped(token[1:-1])
            if len(data) != 1:
                raise self._fail("a character is one byte", start)
            return operations.number_of(program, data[0] - ((data[0] & 0x80) << 1), "char")
        if token == "(" and kind == "sign":
            self._next()
            value = self.expression()
            self._expect(")")
            return value
        if kind == "string" and self.names.make is not None:
            address = self.names.make(self._string())
            return drgn.Object(program, program.pointer_type(program.type("char")), address)
        if kind == "string":
            raise self._fail("a string can only be a whole argument")
        if token and token in "@{}=":
            raise self._fail(f"{token!r} has no meaning here")
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
            return operations.number_of(program, int(name == "true"))
        if name == "current":
            return self._task(self.names.current)
        if name in self.names.constants:
            return operations.number_of(program, self.names.constants[name])
        if (own := self._do(start, lambda: self.names.given(name))) is not None:
            return own
        if (found := self._object(name)) is not None:
            return found
        address = self.names.address(name)
        if address is not None and self.names.is_code(name):
            return drgn.Object(program, program.type("void *"), address)
        if address is not None:
            why = f"the type of {name} is not known without debug info: write *(TYPE *)&{name}"
            raise self._fail(why, start)
        if (macro := self.names.macros().get(name)) is not None:
            return operations.number_of(program, macro)
        why = f"nothing in this kernel is called {name!r}"
        if name.isupper():
            why += "; if it is a macro, no debug info has its value: write the number"
        raise self._fail(why, start)

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
        if name in ("sizeof", "offsetof", "container_of", *_ENTRIES):
            return self._of_types(name, start)
        if name not in ("task", *_PERCPU):
            return self._nested(name, start)
        self._next()
        first = self.expression()
        cpu = self.names.cpu
        if name in ("per_cpu", "per_cpu_ptr"):
            self._expect(",")
            cpu = self._integer(self.expression(), start)
        self._expect(")")
        if name == "task":
            number = self._integer(first, start)
            return self._task(self._do(start, lambda: self.names.task(number)))
        return self._do(start, lambda: self._percpu(first, cpu))

    def _nested(self, name: str, start: int) -> Any:
        """``g(x)`` in ``f(g(x))``: what the kernel's function returns."""
        if self.names.run is None:
            raise self._fail(f"{name}() cannot be called inside of an expression", start)
        self._deeper()
        value = self.names.run(self._called(name, start))
        self._depth -= 1
        if value is None:
            raise self._fail(f"{name}() returns nothing", start)
        return value

    def _of_types(self, name: str, start: int) -> Any:
        """sizeof(), offsetof() and container_of() with its kin, whose arguments are types."""
        import drgn

        program = self.names.program
        if name == "sizeof":
            kind = self._cast()
            if kind is not None:
                return self._do(
                    start, lambda: operations.number_of(program, drgn.sizeof(kind), "unsigned long")
                )
            self._next()
            value = self.expression()
            self._expect(")")
            return self._do(
                start, lambda: operations.number_of(program, drgn.sizeof(value), "unsigned long")
            )
        self._next()
        pointer = None
        if name != "offsetof":
            pointer = self.expression()
            self._expect(",")
        match = re.compile(r"\s*([\w\s]+?)\s*,\s*([\w.\[\]]+)\s*\)").match(self.text, self.start)
        if match is None:
            raise self._fail(f"expected a type and a member: {name}(..., TYPE, MEMBER)")
        kind = self._do(self.start, lambda: operations.type_named(program, match[1]))
        self.at = match.end()
        self._next()
        if pointer is None:
            offset = self._do(start, lambda: drgn.offsetof(kind, match[2]))
            return operations.number_of(program, offset, "unsigned long")
        node = pointer
        if _ENTRIES.get(name):
            node = self._do(start, lambda: pointer.member_(_ENTRIES[name]))
        return self._do(start, lambda: drgn.container_of(node, kind, match[2]))

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
