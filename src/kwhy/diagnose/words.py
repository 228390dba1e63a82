"""Machine terms in the source's words: ``tty->ctrl.pgrp`` instead of ``[rdi+0x1c0]``.

Names come from types alone (prototypes and layouts, by DWARF or BTF), so that they read the same on
a machine without debug symbols.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from kwhy.arch import Arch
from kwhy.flow.cfg import Code
from kwhy.flow.ir import INVERSE
from kwhy.flow.state import Condition, split
from kwhy.flow.terms import Facts, Term, domain, known, mask, signed
from kwhy.kernel.model import Kernel
from kwhy.kernel.types import TypeRef
from kwhy.record.errno import ERRNO

MAX_DEPTH = 8

_SYMBOLS = {
    "eq": "==", "ne": "!=", "ult": "<", "ule": "<=", "ugt": ">", "uge": ">=",
    "slt": "<", "sle": "<=", "sgt": ">", "sge": ">=",
}  # fmt: skip
_BINARY = {
    "add": "+", "sub": "-", "and": "&", "or": "|", "xor": "^", "mul": "*",
    "shl": "<<", "shr": ">>", "sar": ">>",
}  # fmt: skip
_ADDRESSES = -0x10000
"""A number of no known type below it is an address of the kernel rather than negative."""
_OFFSETS = "__per_cpu_offset["
Named = tuple[str, TypeRef | None]


class Frames(Protocol):
    """Whose terms are named: frames by number, each (…, its function, the calls it made)."""

    @property
    def frames(self) -> Mapping[int, tuple[Any, Any, Sequence[Any]]]: ...
    @property
    def code(self) -> Code: ...


class Words:
    """Names terms of the frames that somebody (a Tracer, say) explored.

    ``is_error`` tells which negative numbers are error numbers.
    """

    def __init__(
        self,
        kernel: Kernel,
        tracer: Frames,
        arch: Arch,
        is_error: Callable[[int], bool] = lambda _number: True,
    ) -> None:
        self.kernel = kernel
        self._is_error = is_error
        self.tracer = tracer
        self.arch = arch

    # --- terms ------------------------------------------------------------------------------------

    def name(self, term: Term, depth: int = 0) -> Named:
        """A term as a C expression, with its type where that is known."""
        if depth > MAX_DEPTH:
            return "…", None
        if isinstance(term, int):
            return number(term), None
        tag = term[0]
        if tag in ("low", "sext"):
            return self.name(term[2], depth)
        if tag == "join":
            return self._joined(term, depth)
        if tag == "arg":
            return self._given(term, depth)
        if tag == "init":
            return self._argument(term)
        if tag == "ret":
            return self._result(term)
        if tag == "mem":
            return self._memory(term, depth)
        if tag == "add":
            return self._sum(term, depth)
        if tag == "percpu":
            return self._percpu(term)
        if tag == "bin":
            file = self._file(term)
            if file is not None:
                return file
            a, _ = self.name(term[3], depth + 1)
            b, _ = self.name(term[4], depth + 1)
            if isinstance(term[4], int) and term[1] in ("and", "or"):
                b = f"{term[4]:#x}"
            if isinstance(term[4], int) and term[1] == "add" and signed(term[4], term[2]) < 0:
                return f"({a} - {-signed(term[4], term[2])})", None
            return f"({a} {_BINARY.get(term[1], term[1])} {b})", None
        if tag in ("neg", "not"):
            a, _ = self.name(term[2], depth + 1)
            return f"{'-' if tag == 'neg' else '~'}{a}", None
        return "?", None

    def _joined(self, term: Any, depth: int) -> Named:
        """A register of which only low bytes were written last: cleared ones take flags off."""
        _, size, value, old = term
        if not isinstance(value, int) or isinstance(old, int):
            return self.name(value, depth)
        text = f"({self.name(old, depth + 1)[0]} & ~{mask(size):#x})"
        return (f"({text} | {value:#x})" if value else text), None

    def _given(self, term: Any, depth: int) -> Named:
        """An argument of the system call, by the name that its own function gives it.

        Of a constant that was passed to another function: its parameter, or where it lay.
        """
        match term[1]:
            case (frame, str(register)):
                return self._argument(("init", frame, register))
            case (_, address, size):
                return self._memory(("mem", address, size, None), depth)
        entry = self.tracer.frames.get(0)
        if entry is not None:
            bare = entry[1].name
            for prefix in self.arch.syscall_prefixes:
                bare = bare.removeprefix(prefix)
            for prefix in ("__do_sys_", "__se_sys_", "ksys_", "do_"):
                prototype = self.kernel.types.prototype(prefix + bare)
                if prototype is not None and term[1] < len(prototype.params):
                    return prototype.params[term[1]][0], None
        return f"argument {term[1] + 1}", None

    def _argument(self, term: Any) -> Named:
        _, frame, register = term
        entry = self.tracer.frames.get(frame)
        if register in self.arch.arguments and entry is not None and entry[1].entry:
            found = self.kernel.prototype(entry[1].entry)
            index = self.arch.arguments.index(register)
            if found is not None and not found.optimised and index < len(found.params):
                return found.params[index]
        return register, None

    def _result(self, term: Any) -> Named:
        _, frame, k = term
        entry = self.tracer.frames.get(frame)
        callee = None
        if isinstance(k, int) and entry is not None:
            callee = getattr(entry[2][k], "function", None) if k < len(entry[2]) else None
        elif isinstance(k, tuple) and entry is not None:
            for segment in entry[1].segments.values():
                if segment.last.address == k[1] and segment.target is not None:
                    callee = self.tracer.code.resolve(segment.target)
        if callee is None:
            return "?", None
        name = self.tracer.code.name(callee)
        prototype = self.kernel.prototype(callee)
        return f"{name}()", prototype.ret if prototype else None

    def _file(self, term: Any) -> Named | None:
        """``fd_file(fdget())``: since 6.12 a struct fd is a file's address with two flags in it.

        fd_file() in include/linux/file.h.
        """
        if term[1:3] != ("and", 8) or term[4] != mask(8) - 3:
            return None
        text, kind = self.name(term[3], MAX_DEPTH)
        putter = self.kernel.types.prototype("fput")
        if kind is None or putter is None or self.kernel.types.name(kind) != "struct fd":
            return None
        return f"fd_file({text})", putter.params[0][1]

    def _memory(self, term: Any, depth: int) -> Named:
        _, address, size, _ = term
        base, offset = split(address)
        if isinstance(address, tuple) and address[0] == "percpu":
            return self._percpu(address)
        if base == 0 or isinstance(base, int):
            return self._global(offset & mask(8), size)
        if isinstance(base, tuple) and base[0] == "init" and base[2] == self.arch.stack:
            return f"stack{offset:+#x}", None
        if offset < _ADDRESSES and (name := self._element(base, offset, size, depth)):
            return name, None
        if isinstance(base, tuple) and base[0] == "bin" and base[1] == "add":
            return self._indexed(base, offset, size, depth)
        text, kind = self.name(base, depth + 1)
        if text.startswith(_OFFSETS) and (found := self.kernel.types.percpu(offset & mask(8))):
            variable, _, field = found[0].partition(".")
            cpu = text.removeprefix(_OFFSETS).removesuffix("]")
            return f"per_cpu({variable}, {cpu})" + (f".{field}" if field else ""), found[1]
        return self._field(text, kind, offset, size)

    def _field(self, text: str, kind: TypeRef | None, offset: int, size: int) -> Named:
        types = self.kernel.types
        if kind is not None:
            inner = types.deref(kind)
            if inner is not None:
                if not types.is_struct(inner):
                    width = types.size(inner) or 0
                    if width and offset % width == 0:
                        return (f"*{text}" if not offset else f"{text}[{offset // width}]"), inner
                else:
                    found = types.member(inner, offset, size)
                    if found:
                        return f"{text}->{found[0].path}", found[0].type
        return f"*({text}{offset:+#x})" if offset else f"*{text}", None

    def _indexed(self, base: Any, offset: int, size: int, depth: int) -> Named:
        types = self.kernel.types
        for part, index in ((base[3], base[4]), (base[4], base[3])):
            text, kind = self.name(part, depth + 1)
            inner = types.deref(kind) if kind is not None and types.is_pointer(kind) else None
            if inner is None:
                continue
            unit, number_ = _scaled(index)
            place, _ = self.name(number_, depth + 1)
            found = self._inside(text, inner, (place, unit), offset, size)
            if found is not None:
                return found
        a, _ = self.name(base, depth + 1)
        return f"*({a}{offset:+#x})", None

    def _inside(
        self, text: str, inner: TypeRef, index: tuple[str, int], offset: int, size: int
    ) -> Named | None:
        """``p[i]``, ``p[i].field`` or ``p->array[i]``: what lies ``i`` units (in bytes) and
        ``offset`` behind a pointer to ``inner``; None where the units are not those of the type."""
        types = self.kernel.types
        place, unit = index
        width = types.size(inner) or 0
        if not types.is_struct(inner):
            if width != unit or offset % width:
                return None
            return f"{text}[{place}{_plus(offset // width)}]", inner
        found = types.member(inner, offset, size)
        if not found:
            return None
        path = found[0].path
        if width == unit:
            return f"{text}[{place}].{path}", found[0].type
        following = types.member(inner, offset + unit, size)
        if not following or path.replace("[0]", "[1]", 1) != following[0].path:
            return None
        return f"{text}->{path.replace('[0]', f'[{place}]', 1)}", found[0].type

    def _element(self, base: Any, offset: int, size: int, depth: int) -> str:
        """``__per_cpu_offset[cpu]``: an element of a variable at a constant address; "" if not."""
        symbol = self.kernel.symbols.at(offset & mask(8))
        if symbol is None or symbol.code or symbol.address != offset & mask(8):
            return ""
        unit, number_ = _scaled(base)
        index, _ = self.name(number_, depth + 1)
        return f"{symbol.name}[{index}]" if unit == size else ""

    def _global(self, address: int, size: int) -> Named:
        symbol = self.kernel.symbols.at(address)
        if symbol is None:
            return f"*{address:#x}", None
        kind = self.kernel.types.variable(symbol.name)
        inside = address - symbol.address
        if kind is not None and self.kernel.types.is_struct(kind):
            found = self.kernel.types.member(kind, inside, size)
            if found:
                return f"{symbol.name}.{found[0].path}", found[0].type
        return symbol.name + (f"+{inside:#x}" if inside else ""), kind if not inside else None

    def _percpu(self, term: Any) -> Named:
        if isinstance(term[1], int):
            found = self.kernel.types.percpu(term[1])
            if found is not None:
                name, kind = found
                return ("current" if name.endswith("current_task") else name), kind
        return "percpu", None

    def _sum(self, term: Any, depth: int) -> Named:
        text, kind = self.name(term[1], depth + 1)
        offset = signed(term[2], 8)
        if offset in range((1 << 32) + _ADDRESSES, 1 << 32):  # of 32 bits, and negative
            offset -= 1 << 32
        inner = self.kernel.types.deref(kind) if kind is not None else None
        if inner is not None and self.kernel.types.is_struct(inner):
            found = self.kernel.types.member(inner, offset, 1)
            if found:
                return f"&{text}->{found[0].path}", None
        return f"({text} {'-' if offset < 0 else '+'} {abs(offset)})", None

    # --- conditions -------------------------------------------------------------------------------

    def condition(self, condition: Condition | None, taken: bool) -> str:
        """What held at a branch, as C: ``is_current_pgrp_orphaned() != 0``."""
        if condition is None:
            return "?"
        op, a, b, size = oriented(condition, taken)
        left, kind = self.name(a)
        right = self.value(b, kind, size) if isinstance(b, int) else self.name(b)[0]
        if isinstance(a, int) and not isinstance(b, int):
            other, kind = self.name(b)
            left, right = self.value(a, kind, size), other
        if isinstance(b, int) and op in ("ugt", "uge") and signed(b, size) in range(-4096, 0):
            return f"IS_ERR({left})"
        if isinstance(b, int) and op in ("ule", "ult") and signed(b, size) in range(-4096, 0):
            return f"!IS_ERR({left})"
        return f"{left} {_SYMBOLS[op]} {right}"

    def value(self, value: int, kind: TypeRef | None, size: int) -> str:
        """A number as its type's reader wants it."""
        value &= mask(size)
        symbol = self.kernel.symbols.at(value) if size == 8 and signed(value, 8) < -4096 else None
        if symbol is not None and symbol.address == value:
            return f"&{symbol.name}"
        types = self.kernel.types
        if kind is not None:
            names = types.enumerators(kind)
            if value in names:
                return f"{names[value]} ({value})"
            if types.is_pointer(kind):
                error = errno_of(signed(value, size))
                return "NULL" if value == 0 else error or f"{value:#x}"
        number_ = signed(value, size)
        unsigned = kind is not None and not types.is_signed(kind)
        error = None if unsigned and number_ == -1 else self._error(number_)
        if error and not (kind is not None and types.is_struct(kind)):
            return error
        if unsigned or (kind is None and number_ < _ADDRESSES):
            return number(value)
        return number(number_ if number_ < 0 else value)

    def _error(self, number: int) -> str | None:
        return errno_of(number) if self._is_error(number) else None

    def known(self, term: Term, facts: Facts, size: int) -> str | None:
        """What the facts say of a term's value, in words; None if nothing."""
        _, kind = self.name(term)
        value = known(term, facts)
        if value is not None:
            return self.value(value, kind, size)
        spans = domain(term, facts)
        top = mask(size)
        if not spans or spans in (((0, top),), ((0, mask(8)),), domain(term, {})):
            return None
        if spans in (((1, top),), ((1, mask(8)),)):
            return "not NULL" if kind and self.kernel.types.is_pointer(kind) else "not 0"
        if size >= 4 and all(lo >= (top + 1) - 4095 for lo, _ in spans):
            return "an error pointer" if size == 8 else "an error number"
        if spans[0][0] >> (8 * size - 1) and len(spans) == 1:
            return "negative"
        if len(spans) <= 3:
            return " or ".join(
                number(lo) if lo == hi else f"{number(lo)} … {number(hi)}" for lo, hi in spans
            )
        return None


def _plus(number_: int) -> str:
    return f" {'-' if number_ < 0 else '+'} {abs(number_)}" if number_ else ""


def _scaled(index: Any) -> tuple[int, Term]:
    """How many bytes one of an index is, and the index."""
    if index[:3] in (("bin", "mul", 8), ("bin", "shl", 8)) and isinstance(index[4], int):
        return index[4] if index[1] == "mul" else 1 << index[4], index[3]
    return 1, index


def readable(text: str) -> bool:
    """Whether a term's name says something to a reader of the source."""
    return not any(mark in text for mark in ("*(", "**", "?", "stack+", "stack-", "percpu", "…"))


def oriented(condition: Condition, taken: bool) -> Condition:
    """The comparison that held, given whether the branch's own one did."""
    if taken:
        return condition
    op, a, b, size = condition
    return INVERSE[op], a, b, size


def number(value: int) -> str:
    """Small numbers in decimal, large ones in hex."""
    return str(value) if -4096 < value < 65536 else f"{value:#x}"


def errno_of(value: int) -> str | None:
    """``-EIO`` for -5; None for what is no error number."""
    return f"-{ERRNO[-value][0]}" if -value in ERRNO else None
