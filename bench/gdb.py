"""What gdb knows of the parameters on the stacks of tasks that sleep.

gdb knows nothing of the kernel's tasks: their registers and stacks are given to it as the threads
of a core file.
"""

import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kwhy.kernel.elf import ElfFile

_REGISTERS = (
    "r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si", "di",
    "orig_ax", "ip", "cs", "flags", "sp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
)  # fmt: skip
"""struct user_regs_struct (arch/x86/include/asm/user_64.h)."""
_PRSTATUS, _PID, _REGS = 336, 32, 112
_FRAME = re.compile(r"^#\d+\s+(?:0x([0-9a-f]+) in )?[\w.]+ \((.*?)\)(?: at \S+| from \S+|$)")
_ARGUMENT = re.compile(r"(?:^|, )(\w+)(?:@entry)?=")
_COMMANDS = """
set pagination off
set width 0
set print frame-arguments scalars
symbol-file -o {slide} {vmlinux}
core-file {core}
thread apply all -q bt 128
"""


def parameters(kernel: Any, stacks: Sequence[Any]) -> dict[tuple[int, int], dict[str, str]]:
    """By thread number (from 1, in the order of ``stacks``) and return address: name to value.

    Parameters that gdb does not know are left out; of two values that at the entry counts.
    """
    text = ElfFile(kernel.vmlinux).section_range(".text")
    with tempfile.TemporaryDirectory(prefix="kwhy-bench-") as directory:
        core, script = Path(directory) / "core", Path(directory) / "commands"
        core.write_bytes(_core(stacks))
        slide = kernel.symbols.vmlinux.bias - (text[0] if text else 0)
        script.write_text(_COMMANDS.format(slide=slide, vmlinux=kernel.vmlinux, core=core))
        command = ["gdb", "-nx", "-q", "-batch", "-x", str(script)]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[tuple[int, int], dict[str, str]] = {}
    # gdb shows the last thread first, and each backtrace begins with #0.
    backtraces = re.split(r"^(?=#0 )", told, flags=re.MULTILINE)[-len(stacks) :]
    for thread, backtrace in enumerate(reversed(backtraces), 1):
        pc = 0
        for line in backtrace.splitlines():
            frame = _FRAME.match(line)
            if frame:  # without an address: the function in which the one before is inlined
                pc = int(frame[1], 16) if frame[1] else pc
                found[thread, pc] = dict(_values(frame[2]))
    return found


def _values(text: str) -> Iterator[tuple[str, str]]:
    names = list(_ARGUMENT.finditer(text))
    ends = [name.start() for name in names[1:]] + [len(text)]
    for name, end in zip(names, ends, strict=False):
        value = text[name.end() : end]
        value = value.removeprefix(f"{name[1]}@entry=")
        if not value.startswith(("<optimized out>", "<error")):
            yield name[1], value


def _core(stacks: Sequence[Any]) -> bytes:
    notes = b"".join(_note(number, stack) for number, stack in enumerate(stacks, 1))
    pieces = [(s.task.sp, struct.pack(f"<{len(s.words)}Q", *s.words)) for s in stacks]
    at = 64 + 56 * (1 + len(pieces))
    elf = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 4, 62, 1, 0, 64, 0, 0, 64, 56,
                      1 + len(pieces), 0, 0, 0)  # fmt: skip
    headers = [struct.pack("<IIQQQQQQ", 4, 0, at, 0, 0, len(notes), 0, 4)]
    at += len(notes)
    for address, data in pieces:
        headers.append(struct.pack("<IIQQQQQQ", 1, 6, at, address, 0, len(data), len(data), 8))
        at += len(data)
    return elf + b"".join(headers) + notes + b"".join(data for _address, data in pieces)


def _note(thread: int, stack: Any) -> bytes:
    """NT_PRSTATUS of a task (include/uapi/linux/elfcore.h)."""
    registers = {**dict(stack.saved), "ip": stack.frames[0].pc, "sp": stack.frames[0].sp}
    status = bytearray(_PRSTATUS)
    struct.pack_into("<i", status, _PID, thread)
    values = [registers.get(name, 0) for name in _REGISTERS]
    struct.pack_into(f"<{len(values)}Q", status, _REGS, *values)
    return struct.pack("<III8s", 5, len(status), 1, b"CORE") + bytes(status)
