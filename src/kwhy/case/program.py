"""Evidence from a drgn program: a kernel dump, a running kernel or a QEMU guest that it reads.

The target's own page tables translate addresses, so that every mapped kernel address is readable;
the facts that an agent would have in files (symbols, types of modules) are taken from memory.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kwhy.case.evidence import PAGE, Facts
from kwhy.case.kallsyms import text_in_memory
from kwhy.case.memory import assemble, pages_of, runs
from kwhy.case.remembering import Remembering
from kwhy.errors import InputError

_MAX_BLOB = 256 << 20
_KERNEL_HALF = 1 << 63
_SYSFS_BTF = Path("/sys/kernel/btf")


class ProgramEvidence(Remembering):
    """What a ``drgn.Program`` of a Linux kernel can read; ``name`` says what it is to a reader.

    Every page is read once and kept: of a kernel that runs, this is one look. Memory that the
    program cannot read (user pages that kdump left out) is missing, never zeros.
    """

    def __init__(self, program: Any, name: str) -> None:
        self._program = program
        self._info: str = program["VMCOREINFO"].string_().decode("ascii", "replace")
        self._name = name
        fields = dict(line.split("=", 1) for line in self._info.splitlines() if "=" in line)
        super().__init__(
            Facts(
                release=fields.get("OSRELEASE", ""),
                build_id=fields.get("BUILD-ID", ""),
                target=name,
            )
        )
        self._missing: set[int] = set()

    def again(self) -> "ProgramEvidence | None":
        """A second look at a kernel that runs; None for a dump, which stands still."""
        import drgn

        if not self._program.flags & drgn.ProgramFlags.IS_LIVE:
            return None
        fresh = ProgramEvidence(self._program, self._name)
        fresh.facts, fresh.blobs, fresh.answers = self.facts, self.blobs, self.answers
        return fresh

    def read(self, address: int, size: int) -> bytes:
        """Kernel memory as the program gives it; raises MissingMemory."""
        self.prefetch([(address, size)])
        return assemble(self.pages, address, size)

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Copy pages out of the program, neighbouring ones in one piece."""
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

        if address < _KERNEL_HALF:  # an ELF dump by QEMU has physical memory there
            return None
        try:
            data: bytes = self._program.read(address, size)
        except (drgn.FaultError, OverflowError):
            return None
        except Exception as error:  # libkdumpfile's errors come as bare Exceptions
            raise InputError(f"{self._name}: it is damaged: {one_line(error)}") from error
        return data

    def _blob(self, name: str) -> bytes | None:
        """ "vmcoreinfo", "kallsyms" and "btf/NAME", as a live target would give them."""
        if name == "vmcoreinfo":
            return self._info.encode()
        if self._is_this_host() and (found := _own_file(name)):
            return found
        if name == "kallsyms":
            return self._kallsyms()
        if name == "btf/vmlinux":
            return self._between("__start_BTF", "__stop_BTF")
        return None

    def _is_this_host(self) -> bool:
        import drgn

        wanted = drgn.ProgramFlags.IS_LIVE | drgn.ProgramFlags.IS_LOCAL
        return bool(self._program.flags & wanted == wanted)

    def _kallsyms(self) -> bytes | None:
        """The kernel's own symbol table in the format of /proc/kallsyms, without modules.

        Its place is in VMCOREINFO since 6.0 (5fd8fea935a1 "vmcoreinfo: include kallsyms symbols");
        in an older kernel it has to be searched.
        """
        index = self._symbol_index()
        if index is None:
            start = re.search(r"^SYMBOL\(_stext\)=([0-9a-f]{1,16})$", self._info, re.MULTILINE)
            return text_in_memory(self._memory, int(start[1], 16)) if start else None
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


def _own_file(name: str) -> bytes | None:
    """A fact of the running kernel that it offers in a file; None without it, or the right to it.

    Without CAP_SYSLOG the addresses in /proc/kallsyms are all 0: then memory has to tell.
    """
    places = {"kallsyms": Path("/proc/kallsyms")}
    if name.startswith("btf/"):
        places[name] = _SYSFS_BTF / name.removeprefix("btf/")
    try:
        data = places[name].read_bytes() if name in places else None
    except OSError:
        return None
    return None if data and name == "kallsyms" and data.startswith(b"0" * 16) else data


def one_line(error: Exception) -> str:
    """An error's text on one line of bearable length."""
    return " ".join(str(error).split())[:200] or type(error).__name__
