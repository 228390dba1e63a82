"""A dry run of a system call: its kernel entry, as a task, from saved registers made up for it.

The user memory that the arguments point to is made at addresses that the task does not use. Of what
the entry code does around a call the seccomp filters are asked, as the kernel asks them; ptrace and
audit are not part of the run.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kwhy.arch import x86_64_emulation as arch
from kwhy.case.evidence import PAGE, MissingMemory
from kwhy.emulate.call import Caller, Outcome
from kwhy.emulate.constants import constants
from kwhy.emulate.expression import parse_call
from kwhy.emulate.machine import MAX_BLOCKS
from kwhy.emulate.names import Argument, Call, ExpressionError, Out, Text
from kwhy.emulate.operations import article
from kwhy.emulate.passing import BUFFER, Passed, pointed, typed
from kwhy.emulate.scene import KernelScene
from kwhy.errors import UsageError
from kwhy.kernel.symbols import Symbol

_MASK = (1 << 64) - 1
_USER = 0x6B77_0000_0000


@dataclass(frozen=True, slots=True)
class Interface:
    """A system call as the kernel describes it: its number, its parameters as (type, name).

    ``parameters`` None: the kernel has no such description (CONFIG_FTRACE_SYSCALLS).
    """

    name: str
    number: int
    entry: Symbol
    parameters: tuple[tuple[str, str], ...] | None


def dry_run(caller: Caller, text: str, *, detail: bool = False, limit: int = MAX_BLOCKS) -> Outcome:
    """Run ``NAME(ARG, ...)`` as the caller's task. Raises UsageError for what cannot be run."""
    scene = caller.scene(detail)
    names = caller.names(scene)
    names.constants = constants()
    memory = _UserMemory(scene)
    names.make = memory.add
    call = parse_call(text, names)
    face = interface(caller, call.name)
    if face is None:
        why = f"the kernel has no system call {call.name}()"
        others = set(caller.arch.syscalls.values()) - {call.name}
        near = difflib.get_close_matches(call.name, sorted(others), 3)
        raise ExpressionError(text, call.at, why + (f"; is it {' or '.join(near)}?" * bool(near)))
    _check_alive(caller, scene)
    if face.parameters is not None and not _fits(face, len(call.arguments)):
        wanted = ", ".join(f"{kind} {name}" for kind, name in face.parameters) or "void"
        raise ExpressionError(
            text,
            call.at,
            f"{call.name}() takes {len(face.parameters)} arguments ({wanted}), "
            f"{len(call.arguments)} were given",
        )
    passed: list[Passed] = []
    outs: list[tuple[str, int, Any]] = []
    for number, argument in enumerate(call.arguments):
        kind = face.parameters[number][0] if face.parameters else ""
        value, out = _value(caller, call, argument, kind, memory)
        passed.append(Passed(argument.text, value, None))
        if out is not None:
            outs.append((argument.value.name, value, out))
    return _filtered(caller, scene, face, passed, limit) or run(
        caller, scene, face, passed, outs, limit
    )


def _check_alive(caller: Caller, scene: KernelScene) -> None:
    """Raises UsageError for a task that has exited."""
    if _task_number(caller, scene, "exit_state"):
        raise UsageError("the task has exited: it makes no more system calls")
    if not _task_number(caller, scene, "mm"):
        scene.note("the task is a thread of the kernel, which makes no system calls of its own")


def _task_number(caller: Caller, scene: KernelScene, path: str) -> int:
    """A field of the task; 0 where there is none."""
    types = caller.kernel.types
    task = types.named("struct task_struct")
    field = types.field(task, path) if task else None
    if field is None:
        return 0
    return int.from_bytes(scene.memory.read(scene.task + field.offset, field.size), "little")


def _filtered(
    caller: Caller, scene: KernelScene, face: Interface, arguments: Sequence[Passed], limit: int
) -> Outcome | None:
    """What the task's seccomp filters make of a call; None when they let it pass."""
    found = caller.kernel.symbols.named("__secure_computing", modules=False)
    if not _task_number(caller, scene, "seccomp.mode") or not found:
        return None
    _save(caller, scene, face, arguments)
    outcome = caller.enter(
        scene, found[0], [Passed("NULL", 0, None)], caller.program.type("int"), (), limit
    )
    outcome.arguments = tuple(arguments)
    if outcome.returned and not int(outcome.result):
        scene.note("the task's seccomp filters were asked first: they let the call pass")
        return None
    if outcome.returned:
        scene.note("the task's seccomp filters answered: the system call itself is not reached")
        result = scene.word(scene.saved_registers + arch.PT_REGS_RESULT)
        outcome.result = typed(caller.program, caller.program.type("long"), result)
    return outcome


def run(
    caller: Caller,
    scene: KernelScene,
    face: Interface,
    arguments: Sequence[Passed],
    outs: Sequence[tuple[str, int, Any]] = (),
    limit: int = MAX_BLOCKS,
) -> Outcome:
    """Enter a system call on a prepared scene, its arguments in the saved registers."""
    _save(caller, scene, face, arguments)
    register = Passed("", scene.saved_registers, None)
    outcome = caller.enter(scene, face.entry, [register], caller.program.type("long"), outs, limit)
    outcome.arguments = tuple(arguments)
    return outcome


def _save(
    caller: Caller, scene: KernelScene, face: Interface, arguments: Sequence[Passed]
) -> None:
    """The registers as the entry code saves them."""
    frame = scene.saved_registers
    values = [a.value & _MASK for a in arguments]
    for offset, value in zip(caller.arch.syscall_arguments, values, strict=False):
        scene.memory.poke(frame + offset, value.to_bytes(8, "little"))
    number = face.number.to_bytes(8, "little")
    scene.memory.poke(frame + caller.arch.syscall_number, number)
    scene.memory.poke(frame + arch.PT_REGS_RESULT, (-38 & _MASK).to_bytes(8, "little"))  # -ENOSYS


def interface(caller: Caller, name: str) -> Interface | None:
    """What the kernel says of its system call ``name``; None when it has none."""
    symbols = caller.kernel.symbols
    number = next((n for n, known in caller.arch.syscalls.items() if known == name), None)
    found = [
        symbol
        for prefix in caller.arch.syscall_prefixes[:1]
        for symbol in symbols.named(prefix + _CALLED.get(name, name), modules=False)
    ]
    if not found or number is None:
        return None
    return Interface(name, number, found[0], _parameters(caller, _CALLED.get(name, name)))


# Entry functions that are called otherwise than the table's entry
# (arch/x86/entry/syscalls/syscall_64.tbl).
_CALLED = {
    "stat": "newstat", "fstat": "newfstat", "lstat": "newlstat", "uname": "newuname",
    "sendfile": "sendfile64", "umount2": "umount", "fadvise64": "fadvise64",
}  # fmt: skip


# Whose C wrapper takes the last ones only sometimes: left out, they are 0.
_OPTIONAL = {"open": 1, "openat": 1, "fcntl": 1, "ioctl": 1, "mremap": 1, "prctl": 4, "semctl": 1,
             "clone": 3, "ptrace": 2, "futex": 3, "keyctl": 4, "bpf": 2}  # fmt: skip


def _fits(face: Interface, given: int) -> bool:
    wanted = len(face.parameters or ())
    return wanted - _OPTIONAL.get(face.name, 0) <= given <= wanted


def _parameters(caller: Caller, name: str) -> tuple[tuple[str, str], ...] | None:
    """From struct syscall_metadata (include/trace/syscall.h)."""
    kernel = caller.kernel
    place = kernel.symbols.address(f"__syscall_meta__{name}")
    types = kernel.types
    kind = types.named("struct syscall_metadata")
    if place is None or kind is None:
        return None
    values = []
    try:
        for field in ("nb_args", "types", "args"):
            member = types.field(kind, field)
            if member is None:
                return None
            data = kernel.evidence.read(place + member.offset, member.size)
            values.append(int.from_bytes(data, "little"))
        count, kinds, names = values
        if count > len(caller.arch.syscall_arguments):
            return None
        return tuple(
            (_string(caller, kinds + 8 * i), _string(caller, names + 8 * i)) for i in range(count)
        )
    except MissingMemory:
        return None


def _string(caller: Caller, pointer: int) -> str:
    program = caller.program
    text: bytes = program.read_c_string(program.read_u64(pointer), max_size=200)
    return text.decode("utf-8", "replace")


class _UserMemory:
    """Pages of user memory for the arguments of one run, at addresses that the task has free."""

    def __init__(self, scene: KernelScene) -> None:
        self._scene = scene
        self._next = _USER

    def add(self, data: bytes) -> int:
        """Memory that begins with ``data``; an access past its page is a fault, as it should be."""
        pages = -(-len(data) // PAGE)
        for page in range(self._next, self._next + pages * PAGE, PAGE):
            if self._scene.maps(page):
                raise UsageError(f"the task uses {page:#x} itself; its arguments find no place")
            at = page - self._next
            self._scene.memory.add(page, data[at : at + PAGE])
        address = self._next
        self._next += (pages + 1) * PAGE
        return address


def _value(
    caller: Caller, call: Call, argument: Argument, kind: str, memory: _UserMemory
) -> tuple[int, Any]:
    """An argument's register value; the type behind it when it is an out-parameter."""
    import drgn

    value = argument.value
    if isinstance(value, Text | Out) and kind and "*" not in kind and "long" not in kind:
        what = "a string" if isinstance(value, Text) else "memory"
        why = f"{article(kind)} {kind} is wanted, not {what}"
        raise ExpressionError(call.text, argument.at, why)
    if isinstance(value, Text):
        return memory.add(value.data), None
    if isinstance(value, Out):
        target = pointed(value.type) if value.type is not None else _target(caller, kind)
        return memory.add(bytes(drgn.sizeof(target))), target
    try:
        return int(value.value_()) & _MASK, None
    except (TypeError, ValueError, drgn.FaultError) as error:
        raise ExpressionError(call.text, argument.at, f"not a number: {error}") from error


def _target(caller: Caller, kind: str) -> Any:
    """What a user pointer points to, by its type's text ("struct stat *")."""
    import drgn

    program = caller.program
    words = kind.replace("__user", " ").replace("*", " * ").split()
    if words[-1:] == ["*"]:
        try:
            target = program.type(" ".join(words[:-1]))
            if drgn.sizeof(target) > 1:
                return target
        except (LookupError, TypeError, SyntaxError, ValueError):
            pass
    return program.array_type(program.type("unsigned char"), BUFFER)
