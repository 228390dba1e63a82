"""Page tables, read through the kernel's map of all physical memory (its direct map)."""

from collections.abc import Callable
from functools import cached_property

from kwhy import arch
from kwhy.arch import Mapped
from kwhy.errors import FeatureError
from kwhy.kernel.identity import vmcoreinfo
from kwhy.kernel.model import Kernel

DIRECT_MAP_SIZE = 1 << 46


class PageTables:
    """Of one kernel. ``read`` (address, size) reads its memory; what it raises passes through."""

    def __init__(self, kernel: Kernel, read: Callable[[int, int], bytes]) -> None:
        self._kernel = kernel
        self._read = read
        self._arch = arch.of(kernel.arch)

    @cached_property
    def vmcoreinfo(self) -> dict[str, str]:
        """What the kernel tells about its memory (kernel/vmcore_info.c)."""
        return vmcoreinfo(self._kernel.evidence.blob("vmcoreinfo"))

    @cached_property
    def base(self) -> int:
        """Where physical address 0 is mapped. Raises FeatureError."""
        place = self._kernel.symbols.address("page_offset_base")
        if place is None:
            raise FeatureError("the place of the kernel's direct map is not known", "kallsyms")
        return int.from_bytes(self._read(place, 8), "little")

    def maps(self, address: int) -> bool:
        """Whether the direct map holds a kernel address."""
        return self.base <= address < self.base + DIRECT_MAP_SIZE

    def walk(self, table: int, address: int) -> Mapped | None:
        """How the top-level table at physical address ``table`` maps an address; None if not."""
        return self._arch.walk(self.physical, table, self._levels, address)

    def physical(self, address: int, size: int) -> bytes:
        """Physical memory."""
        return self._read(self.base + address, size)

    @cached_property
    def _levels(self) -> int:
        return self._arch.table_levels(self.vmcoreinfo)
