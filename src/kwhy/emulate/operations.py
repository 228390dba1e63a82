"""C's operations on drgn objects, and C's constants as drgn objects."""

import operator
import re
from collections.abc import Callable
from typing import Any

_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
    "%": operator.mod, "&": operator.and_, "|": operator.or_, "^": operator.xor,
    "<<": operator.lshift, ">>": operator.rshift,
}  # fmt: skip
_COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt,
    "<=": operator.le, ">=": operator.ge,
}  # fmt: skip
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v",
            "e": "\x1b"}  # fmt: skip
_SIZES = ((31, "int"), (32, "unsigned int"), (63, "long"), (64, "unsigned long"))
_FUNCTION_POINTER = re.compile(r"[\w\s*]+\(\s*\*\s*\)\s*\(.*\)")


def integer(program: Any, token: str) -> Any:
    """A C integer constant (``0x10UL``) with the type that C gives it. Raises ValueError."""
    digits = token.rstrip("uUlL")
    suffix = token[len(digits) :].lower()
    prefix = digits[:2].lower()
    octal = prefix not in ("0x", "0b") and digits[0] == "0" and len(digits) > 1
    try:
        number = int(digits, 8 if octal else 0)
    except ValueError:
        raise ValueError(f"{token} is no number: one that begins with 0 is octal") from None
    if number >= 1 << 64:
        raise ValueError("the number does not fit in 64 bits")
    decimal = not octal and prefix not in ("0x", "0b")
    for bits, name in _SIZES:
        unsigned = name.startswith("unsigned")
        if ("u" in suffix and not unsigned) or ("l" in suffix and "long" not in name):
            continue
        if unsigned and decimal and "u" not in suffix and bits != 64:
            continue
        if number < 1 << bits:
            return number_of(program, number, name)
    raise ValueError("the number does not fit in its type")


def number_of(program: Any, value: int, name: str = "int") -> Any:
    """A number as an object of the type called ``name``."""
    import drgn

    return drgn.Object(program, program.type(name), value)


def unescaped(text: str) -> bytes:
    """The bytes of what stands between a C string's quotes."""
    out = b""
    for part in re.split(r"(\\(?:x[0-9a-fA-F]{1,2}|[0-7]{1,3}|.))", text, flags=re.DOTALL):
        if not part.startswith("\\"):
            out += part.encode("utf-8", "surrogateescape")
        elif part[1] == "x" and len(part) > 2:
            out += bytes([int(part[2:], 16)])
        elif part[1] in "01234567":
            out += bytes([int(part[1:], 8) & 0xFF])
        else:
            out += _ESCAPES.get(part[1], part[1]).encode()
    return out


def type_named(program: Any, text: str) -> Any:
    """The type that a C type name means; a pointer to a function is ``void *``.

    Raises LookupError for one that the kernel does not have, SyntaxError for what is no type.
    """
    if _FUNCTION_POINTER.fullmatch(text.strip()):
        return program.pointer_type(program.void_type())
    return program.type(" ".join(text.replace("*", " * ").split()))


def prefix(sign: str, value: Any) -> Any:
    """A unary operator."""
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
        return number_of(value.prog_, int(not value))
    if value.type_.kind == drgn.TypeKind.POINTER:
        return value
    return +value


def binary(a: Any, sign: str, b: Any) -> Any:
    """A binary operator. Raises TypeError or ValueError for what C would not do."""
    if sign in ("&&", "||"):
        truth = (bool(a) and bool(b)) if sign == "&&" else (bool(a) or bool(b))
        return number_of(a.prog_, int(truth))
    if sign in _COMPARISONS:
        if _is_pointer(a) != _is_pointer(b):
            a, b = (_address(v) if _is_pointer(v) else v for v in (a, b))
        return number_of(a.prog_, int(bool(_COMPARISONS[sign](a, b))))
    if sign in ("<<", ">>"):
        _check_shift(a, b)
    if sign in "+-" and _is_pointer(a) and not _is_pointer(b) and _is_unsized(a.type_):
        import drgn

        # As GNU C has it: what a function (or void) is made of is bytes.
        return drgn.cast(a.type_, _ARITHMETIC[sign](_address(a), b))
    return _ARITHMETIC[sign](a, b)


def cast(kind: Any, value: Any) -> Any:
    """``(kind)value``; an array becomes the address of its first element."""
    import drgn

    if value.type_.kind in (drgn.TypeKind.ARRAY, drgn.TypeKind.FUNCTION):
        value = value.address_of_()
    if bare(kind).kind in (drgn.TypeKind.STRUCT, drgn.TypeKind.UNION, drgn.TypeKind.ARRAY):
        raise TypeError(f"cannot cast to {kind.type_name()}; write ({kind.type_name()}){{...}}")
    return drgn.cast(kind, value)


Values = list[tuple[str | None, Any]]
"""What stands in braces: each value with the name of its member, None for the next one; a value in
braces is such a list again."""


def compound(kind: Any, program: Any, values: Values) -> Any:
    """``(kind){1, .name = 2, {3}}``."""
    import drgn

    inner = bare(kind)
    if inner.kind == drgn.TypeKind.ARRAY:
        data = [_member(inner.type, program, value).value_() for _, value in values]
        size = program.array_type(inner.type, max(inner.length or 0, len(data)))
        return drgn.Object(program, size, data)
    if inner.kind not in (drgn.TypeKind.STRUCT, drgn.TypeKind.UNION):
        if len(values) != 1:
            raise TypeError(f"one value is wanted for a {kind.type_name()}")
        return drgn.cast(kind, values[0][1])
    made: dict[str, Any] = {}
    names = [member.name for member in inner.members]
    following = 0
    for name, value in values:
        if name is not None and name not in names:
            raise LookupError(f"'{kind.type_name()}' has no member '{name}'")
        if name is None and following >= len(names):
            raise TypeError(f"too many values for a {kind.type_name()}")
        at = following if name is None else names.index(name)
        following = at + 1
        member = inner.members[at]
        if member.name is None:
            raise TypeError("a member without a name can only be set by those inside of it")
        made[member.name] = _member(member.type, program, value).value_()
    return drgn.Object(program, kind, made)


def _member(kind: Any, program: Any, value: Any) -> Any:
    if isinstance(value, list):
        return compound(kind, program, value)
    return value if value.type_.kind == kind.kind else cast(kind, value)


def bare(kind: Any) -> Any:
    """A type without typedefs."""
    import drgn

    while kind.kind == drgn.TypeKind.TYPEDEF:
        kind = kind.type
    return kind


def _is_pointer(value: Any) -> bool:
    import drgn

    return bool(bare(value.type_).kind == drgn.TypeKind.POINTER)


def _is_unsized(kind: Any) -> bool:
    import drgn

    inner = bare(bare(kind).type)
    return bool(inner.kind in (drgn.TypeKind.FUNCTION, drgn.TypeKind.VOID))


def _address(value: Any) -> Any:
    import drgn

    return drgn.cast(value.prog_.type("unsigned long"), value)


def _check_shift(a: Any, b: Any) -> None:
    import drgn

    width = 8 * max(4, drgn.sizeof(a.type_))
    count = int(b.value_())
    if not 0 <= count < width:
        name = a.type_.type_name()
        what = f"{article(name)} {name} cannot be shifted by {count}"
        raise ValueError(f"{what}: it has {width} bits (1UL has 64)")


def article(name: str) -> str:
    """"a" or "an", as a type's name wants it."""
    return "an" if re.match(r"[aeio]|un", name) else "a"
