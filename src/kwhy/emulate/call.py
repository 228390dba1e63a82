"""Any kernel function, run offline with typed arguments.

``Caller(kernel)`` is opened once; ``call("find_vma(task(1)->mm, 0x400000)")`` gives an
:class:`Outcome`: the typed result, what the code wrote, what it left out, and where it stopped.
"""

import copy
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kwhy import arch as architectures
from kwhy.arch import x86_64_emulation as machine_arch
from kwhy.case.evidence import Evidence, MissingMemory
from kwhy.emulate.expression import Argument, Call, ExpressionError, Names, Out, Text, parse_call
from kwhy.emulate.ground import Ground
from kwhy.emulate.history import History
from kwhy.emulate.machine import GENERAL, MAX_BLOCKS, End
from kwhy.emulate.memory import Change
from kwhy.emulate.scene import SCRATCH, KernelScene
from kwhy.emulate.selftest import check
from kwhy.emulate.steps import decoded
from kwhy.errors import UsageError
from kwhy.flow.cfg import Code
from kwhy.kernel.btfprogram import BtfSource
from kwhy.kernel.model import Kernel
from kwhy.kernel.program import open_program
from kwhy.kernel.symbols import PER_CPU_LIMIT, Symbol

_MASK = (1 << 64) - 1
_WORD = 8
BUFFER = 256
"""Bytes behind an out-parameter whose size its type does not tell (char *, void *)."""


@dataclass(frozen=True, slots=True)
class Passed:
    """An argument as it was passed: its text, its register value, its C type (None: not known)."""

    text: str
    value: int
    type: Any


@dataclass(frozen=True, slots=True)
class OutParameter:
    """``&name``: what the memory behind it holds after the call, as a drgn object."""

    name: str
    address: int
    object: Any


@dataclass(slots=True)
class Outcome:
    """What became of one call. ``result`` is a drgn object; None for void or without a return."""

    function: Symbol
    arguments: tuple[Passed, ...]
    end: End
    result: Any
    outs: tuple[OutParameter, ...]
    changes: tuple[Change, ...]
    instructions: int
    pages: int
    scene: KernelScene

    @property
    def returned(self) -> bool:
        """Whether the function came to its end."""
        return self.end.kind == "returned"

    def history(self, code: Code) -> History:
        """The run again with terms; it needs a run in detail."""
        machine = self.scene.machine
        result = machine.get(machine_arch.RESULT) if self.returned else None
        return History(code, machine.track, self.scene.instruction, result)


class Caller:
    """Calls functions of one kernel on one CPU, as one task (a process number) or the CPU's own.

    ``given`` knows variables that expressions may use beside the kernel's, as drgn objects of the
    program that it is called with; None for a name that it does not know.
    """

    def __init__(
        self,
        kernel: Kernel,
        cpu: int = 0,
        task: int | None = None,
        given: Callable[[Any, str], Any] = lambda _program, _name: None,
        memory: Evidence | None = None,
    ) -> None:
        self.kernel = kernel
        self.arch = architectures.of(kernel.arch)
        self.ground = Ground(kernel, memory)
        self.cpu = cpu
        self.given = given
        self.program = open_program(kernel)
        self.task = None if task is None else self.find_task(task)
        check(self)

    def on(self, memory: Evidence) -> "Caller":
        """The same kernel, CPU and task with another reading of the memory."""
        other = copy.copy(self)
        other.ground = Ground(self.kernel, memory)
        return other

    def again(self, task: int) -> "Caller":
        """The same kernel and CPU, its memory read anew, as the task with this number."""
        other = self.on(self.ground.memory)
        other.task = other.find_task(task)
        return other

    # -- tasks -------------------------------------------------------------------------------------

    def find_task(self, number: int) -> int:
        """Address of the task with a process (or thread) number of the initial namespace.

        The kernel's own find_task_by_pid_ns() tells. Raises UsageError when there is none.
        """
        space = self.kernel.symbols.address("init_pid_ns")
        finder = self.kernel.symbols.address("find_task_by_pid_ns")
        if space is None or finder is None:
            raise UsageError("tasks cannot be looked up: the kernel has no find_task_by_pid_ns()")
        # Whoever runs on the CPU now may be gone when the same is asked of a case.
        scene = KernelScene(self.ground, self.cpu, self.kernel.symbols.address("init_task"))
        end = scene.enter(finder, [number, space])
        found = scene.machine.get(machine_arch.RESULT)
        if end.kind != "returned" or not found:
            raise UsageError(f"the target has no task {number}")
        return found

    def scene(self, detail: bool = False) -> KernelScene:
        """A fresh machine on this CPU as this task; nothing of earlier calls is in it."""
        task = getattr(self, "task", None)
        return KernelScene(self.ground, self.cpu, task, detail)

    # -- calling -----------------------------------------------------------------------------------

    def call(self, text: str, *, detail: bool = False, limit: int = MAX_BLOCKS) -> Outcome:
        """Run ``FUNC(ARG, ...)``.

        Raises UsageError for what cannot be called so; whatever happens during the run is told in
        the outcome.
        """
        scene = self.scene(detail)
        call = parse_call(text, self.names(scene))
        function, kind = self._function(call)
        passed, outs = self._pass(scene, call, kind)
        return self.enter(scene, function, passed, kind.type if kind else None, outs, limit)

    def entered(self, text: str) -> dict[str, list[int]]:
        """The argument registers of every function that ``FUNC(ARG, ...)`` calls, its last time."""
        outcome = self.call(text, detail=True)
        track = outcome.scene.machine.track
        out = {}
        for (address, _), registers in zip(track.blocks, track.registers.tolist(), strict=True):
            symbol = self.kernel.symbols.at(address)
            if symbol is not None and symbol.address == address:
                named = dict(zip(GENERAL, registers, strict=True))
                out[symbol.name] = [named[name] for name in machine_arch.ARGUMENTS]
        return out

    def enter(
        self,
        scene: KernelScene,
        function: Symbol,
        passed: Sequence[Passed],
        ret: Any,
        outs: Sequence[tuple[str, int, Any]] = (),
        limit: int = MAX_BLOCKS,
    ) -> Outcome:
        """Run a function on a prepared scene. ``ret`` is its drgn return type, None: not known."""
        import drgn

        end = scene.enter(function.address, [p.value for p in passed], limit)
        value = scene.machine.get(machine_arch.RESULT)
        result = None
        if end.kind == "returned":
            kind = ret if ret is not None else self.program.type("unsigned long")
            if kind.kind != drgn.TypeKind.VOID:
                result = typed(self.program, kind, value)
        shown = tuple(
            OutParameter(name, address, self._read(scene, address, kind))
            for name, address, one in outs
            for kind in (self._written(scene, address, one),)
        )
        own = range(machine_arch.HOLE, machine_arch.HOLE_END)
        told = [range(out.address, out.address + drgn.sizeof(out.object.type_)) for out in shown]
        changes = [
            c
            for c in scene.memory.changes()
            if c.address not in own and not any(c.address in out for out in told)
        ]
        return Outcome(
            function, tuple(passed), end, result, shown, tuple(changes),
            self.instructions(scene), len(scene.memory.loaded), scene,
        )  # fmt: skip

    def names(self, scene: KernelScene) -> Names:
        """What expressions can refer to, as this CPU and task see it."""
        return Names(
            program=self.program,
            address=self.kernel.symbols.address,
            task=self._task_or_lookup,
            current=scene.task,
            percpu_base=lambda cpu: scene.percpu_base(cpu),
            is_percpu=self._is_percpu,
            cpu=self.cpu,
            given=lambda name: self.given(self.program, name),
        )

    def _task_or_lookup(self, number: int) -> int:
        try:
            return self.find_task(number)
        except UsageError as error:
            raise LookupError(str(error)) from error

    def _is_percpu(self, address: int) -> bool:
        symbols = self.kernel.symbols
        start = symbols.address("__per_cpu_start") or 0
        end = symbols.address("__per_cpu_end") or 0
        return address < PER_CPU_LIMIT or start <= address < end

    def _function(self, call: Call) -> tuple[Symbol, Any]:
        """The symbol, and its drgn function type (None when nothing knows it)."""
        symbols = self.kernel.symbols
        found = symbols.named(call.name)
        code = [symbol for symbol in found if symbol.code]
        if not code:
            if found:
                why = f"{call.name} is data, not a function"
            elif variants := [s.name for s in symbols.variant(call.name)]:
                why = (
                    f"the compiler changed {call.name} to {', '.join(variants[:4])}: its arguments "
                    "are not the source's; call a function around it"
                )
            else:
                why = (
                    f"the kernel has no function {call.name}; it may be inlined everywhere, or a "
                    "macro"
                )
            raise ExpressionError(call.text, call.text.index(call.name), why)
        if len({symbol.address for symbol in code}) > 1:
            raise ExpressionError(
                call.text, 0, f"{len(code)} functions are called {call.name}; which is not clear"
            )
        return code[0], self.prototype(code[0])

    def prototype(self, function: Symbol) -> Any:
        """A function's drgn type: by BTF, else by DWARF; None when neither knows it.

        Raises UsageError when only DWARF does and the source that tells the order of its parameters
        is not at hand (see :meth:`BtfSource.prototype`).
        """
        import drgn

        frames = self.kernel.frames(function.address)
        if frames and frames[-1].file.endswith(".S"):  # assembly: its parameters are told nowhere
            return None
        found = self._btf.prototype(function.name) if self._btf else None
        if found is not None:
            return found
        try:
            found = self.program.function(function.name).type_
        except (LookupError, drgn.BadDataError):
            return None
        return found if len(found.parameters) < 2 else self._ordered(function, found)

    def _ordered(self, function: Symbol, kind: Any) -> Any:
        frames = self.kernel.frames(function.address)
        text = self.kernel.source(frames[-1].file) if frames else None
        order = parameter_names(text or "", function.name)
        named = {parameter.name: parameter for parameter in kind.parameters}
        if order is None or set(order) != set(named):
            raise UsageError(
                f"in which order {function.name}() takes its parameters is not known: BTF leaves "
                "the function out, DWARF may have another order; the kernel's source would tell"
            )
        parameters = [named[name] for name in order]
        return self.program.function_type(kind.type, parameters, kind.is_variadic)

    @cached_property
    def _btf(self) -> BtfSource | None:
        btf = self.kernel.btf
        return BtfSource(self.program, btf, self.kernel.symbols) if btf else None

    def _pass(
        self, scene: KernelScene, call: Call, kind: Any
    ) -> tuple[list[Passed], list[tuple[str, int, Any]]]:
        arguments = call.arguments
        if kind is not None:
            wanted = len(kind.parameters)
            if len(arguments) < wanted or (len(arguments) > wanted and not kind.is_variadic):
                names = ", ".join(_declared(p) for p in kind.parameters)
                raise ExpressionError(
                    call.text,
                    len(call.text) - 1,
                    f"{call.name}() takes {wanted} arguments ({names or 'void'}), "
                    f"{len(arguments)} were given",
                )
        passed: list[Passed] = []
        outs: list[tuple[str, int, Any]] = []
        for number, argument in enumerate(arguments):
            parameter = None
            if kind is not None and number < len(kind.parameters):
                parameter = kind.parameters[number].type
            passed.append(self._one(scene, call, argument, parameter, outs))
        return passed, outs

    def _one(
        self,
        scene: KernelScene,
        call: Call,
        argument: Argument,
        parameter: Any,
        outs: list[tuple[str, int, Any]],
    ) -> Passed:
        import drgn

        value = argument.value
        if isinstance(value, Text):
            if parameter is not None and _pointed(parameter) is None:
                why = f"a {parameter.type_name()} is wanted, not a string"
                raise ExpressionError(call.text, argument.at, why)
            return Passed(argument.text, scene.allocate(value.data), parameter)
        if isinstance(value, Out):
            target = _behind(self.program, _pointed(parameter))
            size = _size(target)
            if not size:
                raise ExpressionError(
                    call.text, argument.at,
                    f"no memory can be made for {value.name}: the type behind it is not known",
                )  # fmt: skip
            address = scene.allocate(bytes(size + BUFFER))  # it may be the first of an array
            outs.append((value.name, address, target))
            return Passed(argument.text, address, parameter)
        kind = drgn.TypeKind
        try:
            if value.type_.kind in (kind.FUNCTION, kind.ARRAY):
                return Passed(argument.text, value.address_ or 0, parameter)
            if _is_struct(value.type_):
                data = value.to_bytes_()
                if len(data) > _WORD:  # a larger one goes into several registers, or on the stack
                    why = f"{argument.text} is a structure of {len(data)} bytes"
                    raise ExpressionError(call.text, argument.at, why)
                return Passed(argument.text, int.from_bytes(data, "little"), parameter)
            number = value if parameter is None else drgn.cast(parameter, value)
            return Passed(argument.text, int(number.value_()) & _MASK, parameter)
        except drgn.FaultError as error:
            raise ExpressionError(call.text, argument.at, f"{error}") from error
        except (TypeError, ValueError) as error:
            raise ExpressionError(call.text, argument.at, str(error)) from error

    def _written(self, scene: KernelScene, address: int, kind: Any) -> Any:
        """``kind``, or an array of it where the code wrote more than one."""
        import drgn

        size = drgn.sizeof(kind)
        behind = scene.memory.read(address + size, BUFFER) if address >= SCRATCH else b""
        more = len(behind.rstrip(b"\0"))
        return self.program.array_type(kind, 1 + -(-more // size)) if more else kind

    def _read(self, scene: KernelScene, address: int, kind: Any) -> Any:
        import drgn

        data = scene.memory.read(address, drgn.sizeof(kind))
        return drgn.Object.from_bytes_(self.program, kind, data)

    # -- figures -----------------------------------------------------------------------------------

    def instructions(self, scene: KernelScene) -> int:
        """How many instructions a scene's run took; a clock that cannot be told is noted."""
        total = 0
        for block, times in Counter(scene.machine.track.blocks).items():
            try:
                code = scene.memory.read(*block)
            except MissingMemory:
                code = b""
            insns = decoded(self.arch, code, *block).insns
            total += times * len(insns)
            if any(insn.text in machine_arch.COUNTER_READS for insn in insns):
                scene.note(
                    "the code read the processor's time-stamp counter, which was made to stand "
                    "still where the clock read it last"
                )
        return total


def typed(program: Any, kind: Any, register: int) -> Any:
    """The value in a result register as an object of ``kind``: only its own bytes count."""
    import drgn

    size = drgn.sizeof(kind)
    return drgn.Object.from_bytes_(program, kind, register.to_bytes(8, "little")[:size])


def parameter_names(text: str, function: str) -> list[str] | None:
    """The parameters' names as a function's definition in C source text has them, in order."""
    head = rf"^(?:[A-Za-z_][^\n;{{}}()]*[\s*])?{re.escape(function)}\s*"
    found = re.search(head + r"\(([^{};]*)\)\s*\{", text, re.MULTILINE)
    if found is None:
        return None
    out = []
    for part in found[1].split(","):
        name = re.search(r"([A-Za-z_]\w*)\s*(?:\[[^\]]*\]\s*)*$", part)
        if name is None:
            return None
        out.append(name[1])
    return out


def _is_struct(kind: Any) -> bool:
    import drgn

    while kind.kind == drgn.TypeKind.TYPEDEF:
        kind = kind.type
    return bool(kind.kind in (drgn.TypeKind.STRUCT, drgn.TypeKind.UNION))


def _declared(parameter: Any) -> str:
    name: str = parameter.type.type_name()
    if not parameter.name:
        return name
    return f"{name}{'' if name.endswith('*') else ' '}{parameter.name}"


def _pointed(kind: Any) -> Any:
    """What a (typedef of a) pointer type points to; None for anything else."""
    import drgn

    while kind is not None and kind.kind == drgn.TypeKind.TYPEDEF:
        kind = kind.type
    return kind.type if kind is not None and kind.kind == drgn.TypeKind.POINTER else None


def _behind(program: Any, kind: Any) -> Any:
    """What an out-parameter of type pointer to ``kind`` is: of char and void a buffer."""
    import drgn

    bare = None if kind is None else kind.unqualified()
    if bare is None or (bare.kind != drgn.TypeKind.VOID and bare.type_name() != "char"):
        return kind
    unit = "unsigned char" if bare.kind == drgn.TypeKind.VOID else "char"
    return program.array_type(program.type(unit), BUFFER)


def _size(kind: Any) -> int:
    import drgn

    try:
        return drgn.sizeof(kind) if kind is not None else 0
    except TypeError:
        return 0
