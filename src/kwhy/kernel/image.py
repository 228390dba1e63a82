"""Evidence from a kernel image at rest: the vmlinux file alone, no target.

It serves development and tests, and shows what is true of every boot of that kernel.
"""

from collections.abc import Iterable
from pathlib import Path

from kwhy.case.evidence import Facts, MissingMemory
from kwhy.case.remembering import Remembering
from kwhy.kernel.elf import ElfFile


class ImageEvidence(Remembering):
    """The loadable segments of ``vmlinux``, moved by ``slide`` bytes as KASLR would."""

    def __init__(self, vmlinux: Path, slide: int = 0) -> None:
        self._elf = ElfFile(vmlinux)
        self._slide = slide
        super().__init__(
            Facts(release=self._elf.release() or "", build_id=self._elf.build_id() or "")
        )

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes of the image; raises MissingMemory outside of it."""
        data = self._elf.at(address - self._slide, size)
        if data is None:
            raise MissingMemory(address)
        return data

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Nothing to do: the file is mapped."""

    def _blob(self, name: str) -> bytes | None:
        """ "btf/vmlinux", "notes" and "vmcoreinfo" as this image would give them."""
        if name == "btf/vmlinux":
            return self._elf.section(".BTF")
        if name == "notes":
            return self._elf.section(".notes")
        if name == "vmcoreinfo":
            text = f"OSRELEASE={self.facts.release}\nKERNELOFFSET={self._slide:x}\n"
            return text.encode()
        return None
