"""The user's side of a stack: what a program was doing when it made the system call that hangs.

Unwound by the program's own .eh_frame from the registers that the system call saved; where that has
no rule, by frame pointers, which is marked as a guess.
"""

from kwhy import arch as architectures
from kwhy.case.evidence import MissingMemory
from kwhy.diagnose.hang.look import Look
from kwhy.diagnose.hang.mapped import Place, mappings
from kwhy.diagnose.hang.objects import Objects
from kwhy.diagnose.hang.stacks import Stack
from kwhy.diagnose.hang.tasks import Task
from kwhy.verdict.hang import UserFrame

MAX_FRAMES = 32
_NEAR = 1 << 20  # bytes that a frame may be large, where only frame pointers tell


class UserStacks:
    """Unwinds the user stacks of one look; programs are read once."""

    def __init__(self, look: Look) -> None:
        self._m, self._user = look.memory, look.user
        arch = architectures.of(look.memory.kernel.arch)
        self._dwarf, self._user_code = arch.dwarf, arch.user_code
        self._maps = mappings(look)
        self._objects = Objects(look)

    def frames(self, stack: Stack) -> tuple[UserFrame, ...]:
        """Innermost first; empty for a kernel thread, or where nothing can be read."""
        registers = self._registers(stack)
        found: list[UserFrame] = []
        guessed, exact = False, True
        while registers and len(found) < MAX_FRAMES:
            # Of a call the instruction before counts: the call may be the function's last one.
            place = self._maps.place(stack.task, registers[self._dwarf.pc] - (not exact))
            if place is None or not place.area.code:
                break
            found.append(self._frame(stack.task, place, registers[self._dwarf.pc], guessed))
            registers, guess = self._caller(stack.task, place, registers)
            guessed = guessed or guess
            exact = False
        return tuple(found)

    def _registers(self, stack: Stack) -> dict[int, int]:
        """By DWARF number, as the system call found them."""
        kind = "struct pt_regs"
        try:
            name, wanted = self._user_code
            if stack.regs is None or self._m.value(kind, stack.regs, name) != wanted:
                return {}  # a kernel thread, or a program of 32 bits
            return {
                number: self._m.value(kind, stack.regs, name)
                for number, name in self._dwarf.saved.items()
            }
        except (MissingMemory, LookupError):
            return {}

    def _frame(self, task: Task, place: Place, pc: int, guessed: bool) -> UserFrame:
        path = ""
        if place.area.file:
            try:
                path = self._objects.file_path(place.area.file, task)
            except (MissingMemory, LookupError):
                path = ""
        named = place.program.function(place.linked) if place.program else None
        name, offset = named or ("", place.address - place.area.start + place.area.offset)
        return UserFrame(
            address=f"{pc:#x}", function=name, offset=f"{offset + pc - place.address:#x}",
            object=path, guessed=guessed,
        )  # fmt: skip

    def _caller(
        self, task: Task, place: Place, registers: dict[int, int]
    ) -> tuple[dict[int, int], bool]:
        """The registers of the caller, {} at the end; and whether they are a guess."""
        try:
            if place.program is None:
                raise LookupError
            rule = place.program.rule(place.linked)
        except LookupError:
            return self._by_frame_pointer(task, registers), True
        if rule.register not in registers or self._dwarf.pc not in rule.saved:
            return {}, False  # the outermost function has no caller
        base = registers[rule.register] + rule.offset
        caller = dict(registers)
        for number, below in rule.saved.items():
            word = self._word(task, base + below)
            if word is None:
                return {}, False
            caller[number] = word
        caller[self._dwarf.stack] = base
        if base <= registers[self._dwarf.stack] or not caller[self._dwarf.pc]:
            return {}, False
        return caller, False

    def _by_frame_pointer(self, task: Task, registers: dict[int, int]) -> dict[int, int]:
        dwarf = self._dwarf
        base, stack = registers[dwarf.frame], registers[dwarf.stack]
        if base % 8 or not stack <= base < stack + _NEAR:
            return {}
        above, pc = self._word(task, base), self._word(task, base + 8)
        if above is None or not pc:
            return {}
        return {dwarf.stack: base + 16, dwarf.frame: above, dwarf.pc: pc}

    def _word(self, task: Task, address: int) -> int | None:
        raw = self._user.read(task, address, 8) if address % 8 == 0 else None
        return int.from_bytes(raw, "little") if raw else None
