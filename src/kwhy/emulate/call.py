"""Any kernel function, run offline with typed arguments.

``Caller(kernel)`` is opened once; ``call("find_vma(task(1)->mm, 0x400000)")`` gives an
:class:`Outcome`: the typed result, what the code wrote, what it left out, and where it stopped.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kwhy import arch as architectures
from kwhy.arch import x86_64_emulation as machine_arch
from kwhy.case.evidence import Evidence, MissingMemory
from kwhy.emulate.callee import Callees, check_count
from kwhy.emulate.constants import constants
from kwhy.emulate.expression import parse_call
from kwhy.emulate.ground import Ground
from kwhy.emulate.history import History
from kwhy.emulate.machine import GENERAL, MAX_BLOCKS, End
from kwhy.emulate.memory import Change
from kwhy.emulate.names import Call, ExpressionError, Names
from kwhy.emulate.passing import BUFFER, Made, Passed, argument, arranged, is_hidden, typed
from kwhy.emulate.scene import SCRATCH, KernelScene
from kwhy.emulate.selftest import check
from kwhy.emulate.steps import decoded
from kwhy.errors import UsageError
from kwhy.flow.cfg import Code
from kwhy.flow.ir import Insn
from kwhy.kernel.model import Kernel
from kwhy.kernel.program import open_program
from kwhy.kernel.symbols import PER_CPU_LIMIT, Symbol


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

    def insns(self) -> Iterator[Insn]:
        """Each instruction that ran, once."""
        arch = architectures.of(self.scene.kernel.arch)
        for block in self.scene.machine.track.distinct:
            try:
                yield from decoded(arch, self.scene.memory.read(*block), *block).insns
            except MissingMemory:
                continue

    def history(self, code: Code) -> History:
        """The run again with terms; it needs a run in detail."""
        machine = self.scene.machine
        result = machine.get(machine_arch.RESULT) if self.returned else None
        return History(code, machine.track, self.scene.instruction, result)


class NoArgument(ExpressionError):
    """A call inside of an argument ended otherwise than by returning."""

    def __init__(self, text: str, at: int, why: str, end: End) -> None:
        super().__init__(text, at, why)
        self.end = end


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
        return self._enter(scene, parse_call(text, self.names(scene)), limit)

    def _enter(self, scene: KernelScene, call: Call, limit: int = MAX_BLOCKS) -> Outcome:
        function = self._callees.function(call)
        kind = self.prototype(function)
        passed, outs = self._pass(scene, call, kind)
        return self.enter(scene, function, passed, kind.type if kind else None, outs, limit)

    def _nested(self, scene: KernelScene, call: Call) -> Any:
        """What a call inside of an argument returns; what it writes is there for the outer one."""
        outcome = self._enter(scene, call)
        if not outcome.returned:
            why = f"{call.name}() does not return: {outcome.end.reason}"
            raise NoArgument(call.text, call.at, why, outcome.end)
        scene.note(f"{call.name}() was run first, for an argument")
        return outcome.result

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
        outs: Sequence[Made] = (),
        limit: int = MAX_BLOCKS,
    ) -> Outcome:
        """Run a function on a prepared scene. ``ret`` is its drgn return type, None: not known."""
        import drgn

        kind = ret if ret is not None else self.program.type("unsigned long")
        hidden = scene.allocate(bytes(drgn.sizeof(kind))) if is_hidden(kind) else None
        end = scene.enter(function.address, arranged(passed, hidden), limit)
        for each in passed:
            # A small number may be an offset as well, where nothing went wrong with it.
            offset = each.value < PER_CPU_LIMIT and end.kind != "fault"
            named = "&" in each.text and "per_cpu" not in each.text
            if named and not offset and self._is_percpu(each.value):
                scene.note(f"{each.text} is per-CPU: a CPU's copy is &per_cpu(NAME, CPU)")
        result = None
        if end.kind == "returned" and kind.kind != drgn.TypeKind.VOID:
            if hidden is not None:
                result = self._read(scene, hidden, kind)
            else:
                registers = (machine_arch.RESULT, machine_arch.RESULT_HIGH)
                result = typed(self.program, kind, *map(scene.machine.get, registers))
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
            macros=constants,
            make=scene.allocate,
            run=lambda call: self._nested(scene, call),
            is_code=lambda name: any(s.code for s in self.kernel.symbols.named(name)),
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

    def prototype(self, function: Symbol) -> Any:
        """See :meth:`Callees.prototype`."""
        return self._callees.prototype(function)

    @cached_property
    def _callees(self) -> Callees:
        return Callees(self.kernel, self.program)

    def _pass(
        self, scene: KernelScene, call: Call, kind: Any
    ) -> tuple[list[Passed], list[Made]]:
        if kind is None:
            scene.note(f"the prototype of {call.name or 'the function'}() is not known: its "
                       "arguments were passed as they are")  # fmt: skip
        else:
            check_count(call, kind)
        passed: list[Passed] = []
        outs: list[Made] = []
        parameters = kind.parameters if kind is not None else []
        for number, given in enumerate(call.arguments):
            wanted = parameters[number].type if number < len(parameters) else None
            one, made = argument(self.program, scene, call, given, wanted)
            passed.append(one)
            outs += [made] if made is not None else []
        return passed, outs

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
        for block, times in scene.machine.track.distinct.items():
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
