"""A typed picture of a data structure: every value that can be reached, by its path.

Pictures of different moments are compared value by value.
"""

from dataclasses import dataclass
from typing import Any

from kwhy.emulate.expression import Names, parse_expression
from kwhy.emulate.scene import KernelScene
from kwhy.errors import FATAL, KwhyError
from kwhy.kernel.model import Kernel
from kwhy.kernel.program import open_program
from kwhy.kernel.symbols import PER_CPU_LIMIT

MAX_VALUES = 5000
MAX_ELEMENTS = 64

Picture = dict[str, str]
Trail = frozenset[tuple[int, str]]
"""The structures on the way to a value, by address and type."""


@dataclass(frozen=True, slots=True)
class Change:
    """A value that differs between two pictures; None: it is not there."""

    path: str
    before: str | None
    after: str | None


def take(kernel: Kernel, expression: str, depth: int, cpu: int = 0) -> Picture:
    """The value of ``expression`` and what its pointers lead to, at most ``depth`` of them deep.

    Paths begin behind the expression.
    Raises UsageError for an expression that cannot be understood.
    """
    program = open_program(kernel)
    out: Picture = {}
    _walk(parse_expression(expression, _names(kernel, program, cpu)), "", depth, out, frozenset())
    return out


def differences(before: Picture, after: Picture) -> list[Change]:
    """What changed, in the order of the structure."""
    paths = dict.fromkeys([*before, *after])
    return [
        Change(path, before.get(path), after.get(path))
        for path in paths
        if before.get(path) != after.get(path)
    ]


def _names(kernel: Kernel, program: Any, cpu: int) -> Names:
    from kwhy.emulate.ground import Ground

    scene = KernelScene(Ground(kernel), cpu, None)

    def task(number: int) -> int:
        from drgn.helpers.linux.pid import find_task

        found = find_task(program, number)
        if not found:
            raise LookupError(f"the target has no task {number}")
        return int(found.value_())

    def is_percpu(address: int) -> bool:
        start = kernel.symbols.address("__per_cpu_start") or 0
        end = kernel.symbols.address("__per_cpu_end") or 0
        return address < PER_CPU_LIMIT or start <= address < end

    return Names(
        program=program,
        address=kernel.symbols.address,
        task=task,
        current=scene.task,
        percpu_base=scene.percpu_base,
        is_percpu=is_percpu,
        cpu=cpu,
    )


def _walk(value: Any, path: str, depth: int, out: Picture, seen: Trail) -> None:
    """Put ``value`` and what hangs on it into ``out``."""
    import drgn

    if len(out) >= MAX_VALUES:
        out["…"] = f"cut off after {MAX_VALUES} values"
        return
    kind = value.type_
    while kind.kind == drgn.TypeKind.TYPEDEF:
        kind = kind.type
    try:
        if kind.kind in (drgn.TypeKind.STRUCT, drgn.TypeKind.UNION):
            _members(value, kind, path, depth, out, seen)
        elif kind.kind == drgn.TypeKind.ARRAY:
            _elements(value, kind, path, depth, out, seen)
        elif kind.kind == drgn.TypeKind.POINTER:
            _pointer(value, kind, path, depth, out, seen)
        elif kind.kind != drgn.TypeKind.FUNCTION:
            out[path] = value.format_(type_name=False)
    except drgn.FaultError as error:
        out[path] = f"unreadable at {error.address:#x}"
    except FATAL:
        raise
    except (KwhyError, TypeError, ValueError, LookupError) as error:
        out[path] = f"not shown: {error}"


def _members(
    value: Any, kind: Any, path: str, depth: int, out: Picture, seen: Trail
) -> None:
    for member in kind.members or ():
        if member.name is None:
            _walk(drgn_member(value, member), path, depth, out, seen)
        else:
            inner = f"{path}.{member.name}" if path else member.name
            _walk(value.member_(member.name), inner, depth, out, seen)


def drgn_member(value: Any, member: Any) -> Any:
    """An anonymous member as an object of its own."""
    import drgn

    return drgn.Object(
        value.prog_, member.type, address=value.address_ + member.bit_offset // 8
    )


def _elements(
    value: Any, kind: Any, path: str, depth: int, out: Picture, seen: Trail
) -> None:
    import drgn

    if kind.length is None:
        return
    element = kind.type
    if element.kind == drgn.TypeKind.INT and element.size == 1 and element.name == "char":
        out[path] = value.format_(type_name=False)
        return
    for index in range(min(kind.length, MAX_ELEMENTS)):
        _walk(value[index], f"{path}[{index}]", depth, out, seen)


def _pointer(
    value: Any, kind: Any, path: str, depth: int, out: Picture, seen: Trail
) -> None:
    import drgn

    address = value.value_()
    out[path] = f"{address:#x}" if address else "NULL"
    target = kind.type
    while target.kind == drgn.TypeKind.TYPEDEF:
        target = target.type
    known = (address, target.type_name())
    is_struct = target.kind in (drgn.TypeKind.STRUCT, drgn.TypeKind.UNION)
    if depth < 1 or not address or not is_struct or known in seen or not target.is_complete():
        return
    inner: Picture = {}
    _walk(value[0], path, depth - 1, inner, seen | {known})
    for name, text in inner.items():
        out[f"{path}->{name.removeprefix(path).removeprefix('.')}"] = text
