"""Evidence from a kernel dump: an ELF vmcore (QEMU, kexec) or a kdump file, read by drgn."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kwhy.case.program import ProgramEvidence, one_line
from kwhy.errors import InputError, KwhyError

_PT_LOAD, _PT_NOTE = 1, 4
_NT_PRSTATUS = 1
_MAX_NOTES = 64 << 20
_REGISTERS_AT = 112
"""Where struct elf_prstatus has its registers (include/uapi/linux/elfcore.h)."""
_REGISTERS = (
    "r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si", "di",
    "orig_ax", "ip", "cs", "flags", "sp",
)  # fmt: skip
"""The first of struct user_regs_struct (arch/x86/include/asm/user_64.h)."""


class VmcoreEvidence(ProgramEvidence):
    """What ``path`` holds.

    Raises InputError when it is no kernel dump of x86-64, is truncated or lacks VMCOREINFO.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(_open(path), f"the dump {path.name}")

    def _blob(self, name: str) -> bytes | None:
        """Also "registers": JSON, a list of each CPU's registers by name."""
        if name == "registers":
            return json.dumps(list(cpu_registers(self.path))).encode()
        return super()._blob(name)


def _open(path: Path) -> Any:
    """drgn's program on the dump."""
    import drgn

    if not path.exists():
        raise InputError(f"{path}: there is no such dump")
    if not path.is_file():
        raise InputError(f"{path}: not a file, so no kernel dump")
    _check_length(path)
    try:
        program = _program(path)
    except PermissionError as error:
        raise KwhyError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # libkdumpfile's errors come as bare Exceptions
        why = one_line(error)
        raise InputError(f"{path}: not a kernel dump that can be read: {why}") from error
    if not program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL:
        raise InputError(
            f"{path}: not a dump of a Linux kernel (it has no VMCOREINFO note; a QEMU guest needs "
            "-device vmcoreinfo and the module qemu_fw_cfg)"
        )
    platform = program.platform
    if platform is None or platform.arch != drgn.Architecture.X86_64:
        raise InputError(f"{path}: the dump is not of an x86-64 kernel")
    return program


def _program(path: Path) -> Any:
    """QEMU's kdump files leave the system's name empty; libkdumpfile then knows no architecture."""
    import drgn

    program = drgn.Program()
    try:
        program.set_core_dump(path)
    except Exception as error:
        if "ARCH_NAME" not in str(error):
            raise
        flags = drgn.PlatformFlags.IS_64_BIT | drgn.PlatformFlags.IS_LITTLE_ENDIAN
        program = drgn.Program(drgn.Platform(drgn.Architecture.X86_64, flags))
        program.set_core_dump(path)
    return program


def _check_length(path: Path) -> None:
    """Refuse an ELF dump that is shorter than its own headers say; drgn would notice much later."""
    actual = path.stat().st_size
    headers, whole = _headers(path)
    end = max((at + size for kind, at, size in headers if kind == _PT_LOAD), default=0)
    if not whole or actual < end:
        raise InputError(
            f"{path}: the dump is truncated: its headers promise {end} bytes, the file has {actual}"
        )


def _headers(path: Path) -> tuple[list[tuple[int, int, int]], bool]:
    """Kind, place and size of the parts of an ELF file, and whether all are told; [] for others."""
    with path.open("rb") as file:
        head = file.read(64)
        if head[:6] != b"\x7fELF\x02\x01" or len(head) < 64:
            return [], True  # kdump, or nothing that drgn knows
        (table,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        file.seek(min(table, path.stat().st_size))
        raw = file.read(size * count)
    out = []
    for at in range(0, len(raw) - 55, max(size, 56)):
        kind, _flags, offset, _va, _pa, length = struct.unpack_from("<IIQQQQ", raw, at)
        out.append((kind, offset, length))
    return out, len(raw) == size * count


def cpu_registers(path: Path) -> Iterator[dict[str, int]]:
    """What the notes of an ELF dump say of each CPU's registers."""
    for kind, place, size in _headers(path)[0]:
        if kind != _PT_NOTE:
            continue
        with path.open("rb") as file:
            file.seek(place)
            notes = file.read(min(size, _MAX_NOTES))
        at = 0
        while at + 12 <= len(notes):
            name, length, type = struct.unpack_from("<III", notes, at)
            data = notes[at + 12 + (name + 3 & ~3) :][:length]
            if type == _NT_PRSTATUS and notes[at + 12 :].startswith(b"CORE\0"):
                found = data[_REGISTERS_AT : _REGISTERS_AT + 8 * len(_REGISTERS)]
                if len(found) == 8 * len(_REGISTERS):
                    values = struct.unpack(f"<{len(_REGISTERS)}Q", found)
                    yield dict(zip(_REGISTERS, values, strict=True))
            at += 12 + (name + 3 & ~3) + (length + 3 & ~3)
