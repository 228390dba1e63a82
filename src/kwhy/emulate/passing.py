"""How typed values get into and out of a function: registers, stack, memory that is made for them.

System V AMD64 ABI 3.2.3: a structure of one or two words goes into registers, if all of it finds
room there, a larger one onto the stack; a larger result goes to where a hidden first argument says.
The kernel passes nothing in floating-point registers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kwhy.arch import x86_64_emulation as arch
from kwhy.emulate.names import Argument, Call, ExpressionError, Out, Text
from kwhy.emulate.operations import article, bare
from kwhy.emulate.scene import KernelScene

_MASK = (1 << 64) - 1
_WORD = 8
_IN_REGISTERS = 2
"""Words of a structure that is still passed in registers."""
BUFFER = 256
"""Bytes behind an out-parameter whose size its type does not tell (char *, void *)."""


@dataclass(frozen=True, slots=True)
class Passed:
    """An argument as it was passed: its text, its (first) word, its C type (None: not known).

    ``more`` are the other words of a structure.
    """

    text: str
    value: int
    type: Any
    more: tuple[int, ...] = ()


Made = tuple[str, int, Any]
"""An out-parameter: its name, the address of its memory, the type of what is there."""


def arranged(passed: Sequence[Passed], hidden: int | None = None) -> list[int]:
    """The words of a call in order: those in registers, then those on the stack.

    ``hidden`` is where a large result goes.
    """
    registers = [] if hidden is None else [hidden]
    stack: list[int] = []
    for each in passed:
        words = (each.value, *each.more)
        fits = len(words) <= _IN_REGISTERS and len(registers) + len(words) <= len(arch.ARGUMENTS)
        (registers if fits else stack).extend(words)
    if stack:
        registers += [0] * (len(arch.ARGUMENTS) - len(registers))
    return registers + stack


def is_hidden(kind: Any) -> bool:
    """Whether a result of this type goes to memory that the caller names."""
    import drgn

    return _is_struct(kind) and drgn.sizeof(kind) > _IN_REGISTERS * _WORD


def argument(
    program: Any, scene: KernelScene, call: Call, given: Argument, parameter: Any
) -> tuple[Passed, Made | None]:
    """An argument as the function is to get it. Raises ExpressionError for what it cannot take."""
    import drgn

    value = given.value
    if isinstance(value, Text):
        if parameter is not None and pointed(parameter) is None and not _is_word(parameter):
            name = parameter.type_name()
            why = f"{article(name)} {name} is wanted, not a string"
            raise ExpressionError(call.text, given.at, why)
        return Passed(given.text, scene.allocate(value.data), parameter), None
    if isinstance(value, Out):
        kind = value.type if value.type is not None else parameter
        behind = program.void_type() if kind is not None and _is_word(kind) else pointed(kind)
        target = _behind(program, behind)
        size = _size(target)
        if not size:
            raise ExpressionError(
                call.text, given.at,
                f"no memory can be made for {value.name}: the type behind it is not known; "
                f"write (TYPE *)&{value.name}",
            )  # fmt: skip
        address = scene.allocate(bytes(size + BUFFER))  # it may be the first of an array
        return Passed(given.text, address, kind), (value.name, address, target)
    try:
        return _number(program, call, given, parameter), None
    except drgn.FaultError as error:
        raise ExpressionError(call.text, given.at, f"{error}") from error
    except (TypeError, ValueError) as error:
        raise ExpressionError(call.text, given.at, str(error)) from error


def _number(program: Any, call: Call, given: Argument, parameter: Any) -> Passed:
    import drgn

    value = given.value
    kind = drgn.TypeKind
    if value.type_.kind in (kind.FUNCTION, kind.ARRAY):
        return Passed(given.text, value.address_ or 0, parameter)
    wanted = parameter is not None and _is_struct(parameter)
    if _is_struct(value.type_):
        if parameter is not None and drgn.sizeof(parameter) != drgn.sizeof(value):
            name = value.type_.type_name()
            raise TypeError(f"a {parameter.type_name()} is wanted, not a {name}")
        data = value.to_bytes_()
        first, *rest = (
            int.from_bytes(data[at : at + _WORD], "little") for at in range(0, len(data), _WORD)
        )
        return Passed(given.text, first, parameter, tuple(rest))
    if wanted:
        name = parameter.type_name()
        raise TypeError(f"a {name} is wanted, not a number: ({name}){{...}}")
    number = value if parameter is None else drgn.cast(parameter, value)
    wide = int(number.value_())
    words = (wide & _MASK, wide >> 64 & _MASK) if drgn.sizeof(number) > _WORD else (wide & _MASK,)
    return Passed(given.text, words[0], parameter, words[1:])


def typed(program: Any, kind: Any, low: int, high: int = 0) -> Any:
    """What the result registers hold as an object of ``kind``: only its own bytes count."""
    import drgn

    data = low.to_bytes(_WORD, "little") + high.to_bytes(_WORD, "little")
    return drgn.Object.from_bytes_(program, kind, data[: drgn.sizeof(kind)])


def pointed(kind: Any) -> Any:
    """What a (typedef of a) pointer type points to; None for anything else."""
    import drgn

    kind = None if kind is None else bare(kind)
    return kind.type if kind is not None and kind.kind == drgn.TypeKind.POINTER else None


def _is_struct(kind: Any) -> bool:
    import drgn

    return bare(kind).kind in (drgn.TypeKind.STRUCT, drgn.TypeKind.UNION)


def _is_word(kind: Any) -> bool:
    """An integer that an address fits in: BPF's helpers get their pointers so."""
    import drgn

    kind = bare(kind)
    return bool(kind.kind == drgn.TypeKind.INT and kind.size == _WORD)


def _behind(program: Any, kind: Any) -> Any:
    """What an out-parameter of type pointer to ``kind`` is: of char and void a buffer."""
    import drgn

    plain = None if kind is None else kind.unqualified()
    if plain is None or (plain.kind != drgn.TypeKind.VOID and plain.type_name() != "char"):
        return kind
    unit = "unsigned char" if plain.kind == drgn.TypeKind.VOID else "char"
    return program.array_type(program.type(unit), BUFFER)


def _size(kind: Any) -> int:
    import drgn

    try:
        return drgn.sizeof(kind) if kind is not None else 0
    except TypeError:
        return 0
