"""A typed picture of a data structure: every value that can be reached, by its path.

A structure behind a pointer is in it once, under its type and address, however many pointers lead
there: so a value keeps its path when the pointers change. Pictures of different moments are
compared value by value.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from kwhy.emulate.expression import parse_expression
from kwhy.emulate.names import Names
from kwhy.emulate.scene import KernelScene
from kwhy.errors import FATAL, KwhyError
from kwhy.kernel.model import Kernel
from kwhy.kernel.program import open_program
from kwhy.kernel.symbols import PER_CPU_LIMIT

MAX_VALUES = 5000
MAX_ELEMENTS = 64

TAGS = 3  # a pointer with one of these bits set leads to no structure

Picture = dict[str, str]


@dataclass(frozen=True, slots=True)
class Change:
    """A value that differs between two pictures; None: it is not there."""

    path: str
    before: str | None
    after: str | None


@dataclass(slots=True)
class Sight:
    """A picture, and the drgn object behind each of its values."""

    values: Picture = field(default_factory=dict)
    leaves: dict[str, Any] = field(default_factory=dict)
    behind: list[Any] = field(default_factory=list)  # structures that pointers of it lead to


def take(kernel: Kernel, expression: str, depth: int, cpu: int = 0) -> Picture:
    """The values of ``look``."""
    return look(kernel, expression, depth, cpu).values


def look(kernel: Kernel, expression: str, depth: int, cpu: int = 0) -> Sight:
    """The value of ``expression`` and what its pointers lead to, at most ``depth`` of them deep.

    Paths begin behind the expression, or with the structure: ``page@0xff30.read``.
    Raises UsageError for an expression that cannot be understood.
    """
    program = open_program(kernel)
    root = parse_expression(expression, _names(kernel, program, cpu))
    sight = Sight()
    known = {_identity(root)}
    todo = deque([(root, "", depth)])
    while todo:
        value, path, left = todo.popleft()
        sight.behind = []
        _walk(value, path, sight)
        for each in sight.behind if left > 0 else ():
            if _identity(each) not in known:
                known.add(_identity(each))
                todo.append((each, _label(each), left - 1))
    return sight


def read_leaf(path: str, leaf: Any) -> str:
    """The text of one value, from the memory as it is now."""
    sight = Sight()
    _walk(leaf, path, sight)
    return sight.values[path]


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


def _identity(value: Any) -> tuple[int | None, str]:
    return value.address_, _plain(value.type_).type_name()


def _label(value: Any) -> str:
    """The name of a structure that a pointer leads to."""
    return f"{_plain(value.type_).tag or 'structure'}@{value.address_:#x}"


def _plain(kind: Any) -> Any:
    """A type behind its typedefs."""
    import drgn

    while kind.kind == drgn.TypeKind.TYPEDEF:
        kind = kind.type
    return kind


def _walk(value: Any, path: str, sight: Sight) -> None:
    """Put ``value`` into ``sight``, and the structures that its pointers lead to."""
    import drgn

    out = sight.values
    if len(out) >= MAX_VALUES:
        out["…"] = f"cut off after {MAX_VALUES} values"
        return
    kind = _plain(value.type_)
    try:
        if kind.kind in (drgn.TypeKind.STRUCT, drgn.TypeKind.UNION):
            _members(value, kind, path, sight)
        elif kind.kind == drgn.TypeKind.ARRAY:
            _elements(value, kind, path, sight)
        elif kind.kind == drgn.TypeKind.POINTER:
            sight.leaves[path] = value
            out[path] = _pointer(value, kind, sight.behind)
        elif kind.kind != drgn.TypeKind.FUNCTION:
            sight.leaves[path] = value
            out[path] = value.format_(type_name=False)
    except drgn.FaultError as error:
        out[path] = f"unreadable at {error.address:#x}"
    except FATAL:
        raise
    except (KwhyError, TypeError, ValueError, LookupError) as error:
        out[path] = f"not shown: {error}"


def _members(value: Any, kind: Any, path: str, sight: Sight) -> None:
    for member in kind.members or ():
        if member.name is None:
            _walk(drgn_member(value, member), path, sight)
        else:
            inner = f"{path}.{member.name}" if path else member.name
            _walk(value.member_(member.name), inner, sight)


def drgn_member(value: Any, member: Any) -> Any:
    """An anonymous member as an object of its own."""
    import drgn

    return drgn.Object(
        value.prog_, member.type, address=value.address_ + member.bit_offset // 8
    )


def _elements(value: Any, kind: Any, path: str, sight: Sight) -> None:
    import drgn

    if kind.length is None:
        return
    element = kind.type
    if element.kind == drgn.TypeKind.INT and element.size == 1 and element.name == "char":
        sight.leaves[path] = value
        sight.values[path] = value.format_(type_name=False)
        return
    for index in range(min(kind.length, MAX_ELEMENTS)):
        _walk(value[index], f"{path}[{index}]", sight)


def _pointer(value: Any, kind: Any, behind: list[Any]) -> str:
    """The text of a pointer."""
    import drgn

    address = value.value_()
    target = _plain(kind.type)
    is_struct = target.kind in (drgn.TypeKind.STRUCT, drgn.TypeKind.UNION)
    if not address:
        return "NULL"
    if not is_struct or address & TAGS or not target.is_complete():
        return f"{address:#x}"
    behind.append(value[0])
    return _label(behind[-1])
