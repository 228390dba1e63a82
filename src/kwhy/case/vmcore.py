"""Evidence from a kernel dump: an ELF vmcore (QEMU, kexec) or a kdump file, read by drgn."""

import struct
from pathlib import Path
from typing import Any

from kwhy.case.program import ProgramEvidence, one_line
from kwhy.errors import InputError, KwhyError

_PT_LOAD = 1


class VmcoreEvidence(ProgramEvidence):
    """What ``path`` holds.

    Raises InputError when it is no kernel dump of x86-64, is truncated or lacks VMCOREINFO.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(_open(path), f"the dump {path.name}")


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
    with path.open("rb") as file:
        head = file.read(64)
        if head[:6] != b"\x7fELF\x02\x01" or len(head) < 64:
            return  # kdump, or nothing that drgn knows
        (table,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        actual = path.stat().st_size
        file.seek(min(table, actual))
        raw = file.read(size * count)
    end = 0
    for at in range(0, len(raw) - 55, max(size, 56)):
        kind, _flags, offset, _va, _pa, length = struct.unpack_from("<IIQQQQ", raw, at)
        if kind == _PT_LOAD:
            end = max(end, offset + length)
    if len(raw) < size * count or actual < end:
        raise InputError(
            f"{path}: the dump is truncated: its headers promise {end} bytes, the file has {actual}"
        )
