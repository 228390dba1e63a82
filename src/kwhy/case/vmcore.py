"""Evidence from a kernel dump: an ELF vmcore (QEMU, kexec) or a kdump file, read by drgn.

The dump's own page tables translate addresses, so that every mapped kernel address is readable as
it was; the facts that a live target has in files (symbols, types of modules) are taken from memory.
"""

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kwhy.case.evidence import PAGE, Facts
from kwhy.case.memory import assemble, pages_of, runs
from kwhy.case.remembering import Remembering
from kwhy.errors import InputError, KwhyError

_MAX_BLOB = 256 << 20
_PT_LOAD = 1


class VmcoreEvidence(Remembering):
    """What ``path`` holds.

    Raises InputError when it is no kernel dump of x86-64, is truncated or lacks VMCOREINFO.  Memory
    that the dump does not have (user pages that kdump left out) is missing, never zeros.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._program, self._info = _open(path)
        fields = dict(line.split("=", 1) for line in self._info.splitlines() if "=" in line)
        super().__init__(
            Facts(
                release=fields.get("OSRELEASE", ""),
                build_id=fields.get("BUILD-ID", ""),
                target=f"the dump {path.name}",
            )
        )
        self._missing: set[int] = set()

    def read(self, address: int, size: int) -> bytes:
        """Kernel memory as it was when the dump was made; raises MissingMemory."""
        self.prefetch([(address, size)])
        return assemble(self.pages, address, size)

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Copy pages out of the dump, neighbouring ones in one piece."""
        wanted = [p for p in pages_of(ranges) if p not in self.pages and p not in self._missing]
        for address, size in runs(wanted):
            self._fetch(address, size)

    def _fetch(self, address: int, size: int) -> None:
        piece = self._memory(address, size)
        if piece is not None:
            for offset in range(0, size, PAGE):
                self.pages[address + offset] = piece[offset : offset + PAGE]
        elif size == PAGE:
            self._missing.add(address)
        else:
            for offset in range(0, size, PAGE):
                self._fetch(address + offset, PAGE)

    def _memory(self, address: int, size: int) -> bytes | None:
        import drgn

        try:
            data: bytes = self._program.read(address, size)
        except (drgn.FaultError, OverflowError):
            return None
        except Exception as error:  # libkdumpfile's errors come as bare Exceptions
            raise InputError(f"{self.path}: the dump is damaged: {_line(error)}") from error
        return data

    def blob(self, name: str) -> bytes | None:
        """ "vmcoreinfo", "kallsyms" and "btf/NAME", as a live target would give them."""
        if name not in self.blobs:
            self.blobs[name] = self._make(name)
        return self.blobs[name]

    def _make(self, name: str) -> bytes | None:
        if name == "vmcoreinfo":
            return self._info.encode()
        if name == "kallsyms":
            return self._kallsyms()
        if name == "btf/vmlinux":
            return self._between("__start_BTF", "__stop_BTF")
        return None

    def _kallsyms(self) -> bytes | None:
        """The kernel's own symbol table in the format of /proc/kallsyms, without modules.

        Its place is in VMCOREINFO since 6.0 (5fd8fea935a1 "vmcoreinfo: include kallsyms symbols");
        from an older kernel only debug info can name symbols.
        """
        index = self._symbol_index()
        if index is None:
            return None
        import drgn

        letters = {drgn.SymbolKind.FUNC: "t", drgn.SymbolKind.IFUNC: "t"}
        rows = []
        for symbol in index(self._program, None, None, False):
            letter = letters.get(symbol.kind, "d")
            if symbol.binding != drgn.SymbolBinding.LOCAL:
                letter = "W" if symbol.binding == drgn.SymbolBinding.WEAK else letter.upper()
            rows.append(f"{symbol.address:016x} {letter} {symbol.name}")
        return ("\n".join(rows) + "\n").encode()

    def _symbol_index(self) -> Any:
        from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms

        try:
            return load_vmlinux_kallsyms(self._program)
        except Exception:  # drgn raises what its own reading of damaged tables happens to raise
            return None

    def _between(self, start: str, stop: str) -> bytes | None:
        places = {}
        for line in (self.blob("kallsyms") or b"").splitlines():
            address, _letter, name = line.split()
            if name in (start.encode(), stop.encode()):
                places[name.decode()] = int(address, 16)
        if len(places) < 2 or not 0 < places[stop] - places[start] < _MAX_BLOB:
            return None
        return self._memory(places[start], places[stop] - places[start])


def _open(path: Path) -> tuple[Any, str]:
    """drgn's program on the dump, and the text of its VMCOREINFO."""
    import drgn

    if not path.is_file():
        raise InputError(f"{path}: there is no such dump")
    _check_length(path)
    program = drgn.Program()
    try:
        program.set_core_dump(path)
    except PermissionError as error:
        raise KwhyError(f"{path}: cannot be read: {error.strerror}") from error
    except Exception as error:  # libkdumpfile's errors come as bare Exceptions
        raise InputError(f"{path}: not a kernel dump that can be read: {_line(error)}") from error
    if not program.flags & drgn.ProgramFlags.IS_LINUX_KERNEL:
        raise InputError(
            f"{path}: not a dump of a Linux kernel (it has no VMCOREINFO note; a QEMU guest needs "
            "-device vmcoreinfo and the module qemu_fw_cfg)"
        )
    platform = program.platform
    if platform is None or platform.arch != drgn.Architecture.X86_64:
        raise InputError(f"{path}: the dump is not of an x86-64 kernel")
    return program, program["VMCOREINFO"].string_().decode("ascii", "replace")


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


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
