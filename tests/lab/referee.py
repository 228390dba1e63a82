"""The referee: what the emulator really executed, against which every claimed path is checked.

QEMU's ``-d exec,nochain -D FILE -dfilter START+SIZE,...`` writes a line per translated block, just
before it runs; with chaining off no block is missed. A translated block starts where the one before
it ended (a branch, a call, a return, a page boundary) or where an interrupt or a fault came back.
The ranges can be given only on QEMU's command line, so a guest has to be started for the functions
that it will be asked about, with ``nokaslr`` and ``-smp 1``; the monitor's ``log exec`` and ``log
none`` switch the log on and off.

A path is checked branch by branch: a claimed branch was taken, or not, when the block that holds it
ran and the next block is the branch's target, or the instruction behind it. The referee serves the
tests alone; kwhy never reads this log.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import capstone
import capstone.x86 as x86

# Trace 0: 0x7f021afd9400 [0000000000000000/ffffffff818cba70/18c0c2b0/ff000200]
TRACE = re.compile(r"^Trace \d+: 0x[0-9a-f]+ \[[0-9a-f]+/([0-9a-f]+)/")
# Stopped execution of TB chain before 0x7f021afd9400 [ffffffff818cba70]
STOPPED = re.compile(r"^Stopped execution of TB chain before 0x[0-9a-f]+ \[([0-9a-f]+)\]")

Read = Callable[[int, int], bytes]
"""Live kernel text: address and size to bytes."""


@dataclass(frozen=True, slots=True)
class Range:
    """Kernel text that the referee watches: a function, or its cold part."""

    start: int
    size: int

    def __contains__(self, address: int) -> bool:
        return self.start <= address < self.start + self.size


@dataclass(frozen=True, slots=True)
class Step:
    """One claim: the instruction at ``address`` ran and, if it is a branch, was taken or not.

    ``taken`` None claims only that the instruction ran.
    """

    address: int
    taken: bool | None = None


def qemu_arguments(log: Path, ranges: Iterable[Range], on: bool = False) -> list[str]:
    """What QEMU needs on its command line; the kernel needs ``nokaslr``.

    With ``on`` the log runs from power-on; else switch it on by the monitor's ``log exec,nochain``.
    """
    what = ["-d", "exec,nochain"] if on else []
    filters = ",".join(f"{each.start:#x}+{each.size:#x}" for each in ranges)
    return [*what, "-D", str(log), "-dfilter", filters]


def parse(lines: Iterable[str]) -> Iterator[int]:
    """The start address of every block that ran to its end or to a fault, in order.

    QEMU announces a block and then may stop before it, to serve an interrupt: such an announcement
    is taken back, and the block comes again later.
    """
    announced: int | None = None
    for line in lines:
        if found := TRACE.match(line):
            if announced is not None:
                yield announced
            announced = int(found[1], 16)
        elif (found := STOPPED.match(line)) and announced == int(found[1], 16):
            announced = None
    if announced is not None:
        yield announced


def executions(trace: Iterable[int], ranges: Sequence[Range], entry: int) -> list[list[int]]:
    """The block starts of each run of the function that starts at ``entry``, within ``ranges``.

    A run lasts until the function is entered again. Two tasks in one function at the same time cut
    each other's run in pieces; a claim has to agree with any one run, so that costs nothing unless
    it happens every time.
    """
    found: list[list[int]] = []
    for address in trace:
        if address == entry:
            found.append([])
        if found and any(address in each for each in ranges):
            found[-1].append(address)
    return found


class Code:
    """Live kernel text, disassembled once per address."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._known: dict[int, capstone.CsInsn] = {}
        self._engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        self._engine.detail = True

    def at(self, address: int) -> capstone.CsInsn:
        """The instruction at that address; ValueError if there is none."""
        if address not in self._known:
            text = self._read(address, 16)
            found = next(self._engine.disasm(text, address, count=1), None)
            if found is None:
                raise ValueError(f"no instruction at {address:#x}: {text.hex()}")
            self._known[address] = found
        return self._known[address]

    def block(self, start: int, stop: int | None = None) -> list[capstone.CsInsn]:
        """The instructions from ``start`` to the first that transfers control, or to ``stop``."""
        found: list[capstone.CsInsn] = []
        address = start
        while address != stop and len(found) < 512:
            instruction = self.at(address)
            found.append(instruction)
            address += instruction.size
            if _transfers(instruction):
                break
        return found


def _transfers(instruction: capstone.CsInsn) -> bool:
    groups = (x86.X86_GRP_JUMP, x86.X86_GRP_CALL, x86.X86_GRP_RET, x86.X86_GRP_IRET)
    return any(instruction.group(group) for group in groups)


def steps(execution: Sequence[int], code: Code) -> list[Step]:
    """Every instruction that ran in one execution, its conditional branches with their outcome.

    The outcome is None when the next block is neither the target nor the instruction behind: an
    interrupt came, or the log ended.
    """
    found: list[Step] = []
    following = [*execution[1:], None]
    for start, after in zip(execution, following, strict=True):
        for instruction in code.block(start):
            taken = None
            if instruction.group(x86.X86_GRP_JUMP) and instruction.id != x86.X86_INS_JMP:
                target = instruction.operands[0].imm
                if after == target:
                    taken = True
                elif after == instruction.address + instruction.size:
                    taken = False
            found.append(Step(instruction.address, taken))
            if after is not None and instruction.address + instruction.size == after:
                break  # a block may end without a transfer: at a page boundary
    return found


def agrees(claim: Sequence[Step], execution: Sequence[int], code: Code) -> bool:
    """Whether the claimed steps ran in that order, every branch the way that is claimed.

    The execution may hold more than is claimed: a path names only the branches that matter. A
    branch in a loop may have gone the other way before; see ``decides_last``.
    """
    ran = iter(steps(execution, code))
    return all(_meets(step, ran) for step in claim)


def _meets(wanted: Step, ran: Iterator[Step]) -> bool:
    for step in ran:
        if step.address == wanted.address and (
            wanted.taken is None or step.taken is None or step.taken == wanted.taken
        ):
            return True
    return False


def decides_last(claim: Sequence[Step], execution: Sequence[int], code: Code) -> bool:
    """Whether the last claimed branch went the claimed way the last time that it ran."""
    last = [step for step in claim if step.taken is not None][-1:]
    if not last:
        return False
    ran = [step for step in steps(execution, code) if step.address == last[0].address]
    return bool(ran) and ran[-1].taken in (None, last[0].taken)


class Referee:
    """Watches one guest: switches QEMU's log on around an action and reads what was executed.

    ``monitor`` runs a command of QEMU's human monitor and returns its answer; ``log`` is the file
    of ``-D``; ``ranges`` are those of ``-dfilter``.
    """

    def __init__(self, monitor: Callable[[str], str], log: Path, ranges: Sequence[Range]) -> None:
        self._monitor = monitor
        self._log = log
        self._ranges = tuple(ranges)
        self.code = Code(self.read)

    def read(self, address: int, size: int) -> bytes:
        """Live kernel text, from physical memory: with ``nokaslr`` it is where it was linked.

        Physical 16 MiB is virtual 0xffffffff81000000 (__START_KERNEL_map, page_64_types.h).
        """
        physical = address - 0xFFFFFFFF80000000
        answer = self._monitor(f"xp /{size}xb {physical:#x}")
        return bytes(int(each, 16) for each in re.findall(r"\b0x([0-9a-f]{2})\b", answer))

    def executed(self, entry: int, action: Callable[[], None]) -> list[list[int]]:
        """What ran of the function at ``entry`` during ``action``: block starts, run by run."""
        return executions(self.watch(action), self._ranges, entry)

    def watch(self, action: Callable[[], None]) -> list[int]:
        """Every block in the watched ranges that ran during ``action``, in order."""
        before = self._log.stat().st_size if self._log.exists() else 0
        self._monitor("log exec,nochain")
        try:
            action()
        finally:
            self._monitor("log none")
        with self._log.open() as file:
            file.seek(before)
            return list(parse(file))
