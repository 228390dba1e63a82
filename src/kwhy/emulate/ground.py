"""What every run on one kernel shares: how its memory is found, and how its code is prepared."""

import functools
from functools import cached_property

from kwhy.arch import x86_64_emulation as arch
from kwhy.arch.x86_64_paging import Mapping, walk
from kwhy.case.evidence import PAGE, Evidence, MissingMemory
from kwhy.emulate import limits
from kwhy.emulate.memory import Page
from kwhy.errors import FeatureError, KwhyError
from kwhy.kernel.identity import vmcoreinfo
from kwhy.kernel.model import Kernel
from kwhy.kernel.symbols import Symbols

DIRECT_MAP_SIZE = 1 << 46


class Unfetched(KwhyError):
    """A page would have to be fetched, and this process may not: another one shares its link."""


class Ground:
    """Kernel pages of ``kernel``, text prepared for offline execution."""

    def __init__(self, kernel: Kernel, memory: Evidence | None = None) -> None:
        self.kernel = kernel
        self.memory = memory or kernel.evidence
        """Another reading of the same kernel's memory than the one it was opened with."""
        self.sealed = False
        """Whether nothing more may be read: then Unfetched is raised."""

    # -- pages -------------------------------------------------------------------------------------

    def page(self, page: int) -> Page:
        """A page of the kernel's half. Raises MissingMemory for holes and device memory."""
        kernel = self.kernel
        self._ask(page)
        if kernel.symbols.in_image(page):
            return Page(self._prepared(page, self.memory.read(page, PAGE)))
        if not self._directly_mapped(page):
            mapping = self._kernel_mapping(page)
            if mapping is not None and mapping.device:
                raise MissingMemory(page, "it is device memory")
        data = self.memory.read(page, PAGE)
        return Page(self._prepared(page, data) if kernel.module_at(page) else data)

    def user_page(self, page: int, mapping: Mapping) -> Page:
        """A page of user memory, through the kernel's direct map."""
        physical = mapping.physical & -PAGE
        self._ask(physical)
        data = self.memory.read(self._direct(physical), PAGE)
        return Page(data, mapping.writable)

    def user_mapping(self, table: int, address: int) -> Mapping | None:
        """How the page table at kernel address ``table`` maps a user address, None if not."""
        return walk(self._physical, table - self._direct_base, self._levels, address)

    @cached_property
    def _info(self) -> dict[str, str]:
        return vmcoreinfo(self.kernel.evidence.blob("vmcoreinfo"))

    @cached_property
    def _levels(self) -> int:
        return 5 if self._info.get("NUMBER(pgtable_l5_enabled)") == "1" else 4

    @cached_property
    def _direct_base(self) -> int:
        place = self.kernel.symbols.address("page_offset_base")
        if place is None:
            raise FeatureError("the place of the kernel's direct map is not known", "kallsyms")
        return int.from_bytes(self.memory.read(place, 8), "little")

    def _direct(self, physical: int) -> int:
        return self._direct_base + physical

    def _directly_mapped(self, address: int) -> bool:
        return self._direct_base <= address < self._direct_base + DIRECT_MAP_SIZE

    def _ask(self, address: int) -> None:
        if self.sealed:
            raise Unfetched(f"{address:#x} would have to be fetched")

    def _physical(self, address: int, size: int) -> bytes:
        self._ask(address)
        return self.memory.read(self._direct(address), size)

    def _kernel_mapping(self, page: int) -> Mapping | None:
        """By the kernel's own page tables; they also tell holes, which /proc/kcore shows as zeros.

        None when the tables' place is not known. Raises MissingMemory for a hole.
        """
        root = self.kernel.symbols.address("init_top_pgt")
        slide = self._info.get("NUMBER(phys_base)")
        if root is None or slide is None:
            return None
        physical = root - arch.IMAGE_BASE + int(slide)
        mapping = walk(self._physical, physical, self._levels, page)
        if mapping is None:
            raise MissingMemory(page, "nothing is mapped there")
        return mapping

    # -- code --------------------------------------------------------------------------------------

    def _prepared(self, page: int, data: bytes) -> bytes:
        """A page of text without calls to the tracer, and with traps where a run has to stop."""
        code = bytearray(data)
        symbols = self.kernel.symbols
        for start in symbols.code_starts(page, page + PAGE):
            at = start - page
            for site in (at, at + 4):
                nop = arch.tracer_call(bytes(code[site : site + 5]), page + site, self.name)
                if nop is not None and site + len(nop) <= PAGE:
                    code[site : site + len(nop)] = nop
                    break
            if start in self.planted:
                code[at : at + len(arch.TRAP)] = arch.TRAP
        return bytes(code)

    def name(self, address: int) -> str | None:
        """Of the symbol around an address."""
        symbol = self.kernel.symbols.at(address)
        return symbol.name if symbol else None

    @property
    def planted(self) -> dict[int, str]:
        """Entries of the functions that are not to run, with their names."""
        return _planted(self.kernel.symbols)


@functools.lru_cache(maxsize=2)
def _planted(symbols: Symbols) -> dict[int, str]:
    names = [*limits.STOPS, *limits.SKIPS, *limits.YIELDS, *limits.CLOCKS]
    return {
        symbol.address: name
        for name in names
        for symbol in symbols.named(name, modules=False)
        if symbol.code
    }
