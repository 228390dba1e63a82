"""What a process has mapped where, read from kernel memory.

/proc/PID/maps would wait for the lock of the memory map, which may be the very lock that hangs; a
file may lie on a server that does not answer. So mappings come from the kernel's tree, and files
from the page cache.
"""

from dataclasses import dataclass
from functools import cached_property, partial

from kwhy.case.evidence import PAGE, MissingMemory
from kwhy.diagnose.hang.look import Look
from kwhy.diagnose.hang.memory import Memory
from kwhy.diagnose.hang.programs import Program
from kwhy.diagnose.hang.tasks import Task
from kwhy.errors import FeatureError
from kwhy.kernel.pagetable import PageTables

_INTERNAL, _NODES = 2, 4096  # include/linux/xarray.h: the low bits of what is no plain pointer
_NODE_MASK, _TYPE_SHIFT, _TYPE_MASK = 255, 3, 15  # include/linux/maple_tree.h
_RANGE, _ARANGE = 2, 3  # maple_range_64, maple_arange_64; smaller types are leaves
_SLOTS = 64  # XA_CHUNK_SIZE
_EXECUTABLE = 4  # VM_EXEC
_DEEP = 64


@dataclass(frozen=True, slots=True)
class Area:
    """A mapping of ``[start, end)``: ``file`` is a ``struct file``, ``offset`` bytes into it.

    ``code``: it may be executed.
    """

    start: int
    end: int
    file: int
    offset: int
    code: bool


@dataclass(frozen=True, slots=True)
class Place:
    """An address of a process, the mapping around it and, if that is of an ELF file, the address
    that the file was linked for."""

    area: Area
    program: Program | None
    linked: int
    address: int


class Mappings:
    """Areas by process and address, and what their files are."""

    def __init__(self, memory: Memory) -> None:
        self._m = memory
        self._tables = PageTables(memory.kernel, memory.read)
        self._known: dict[int, list[Area]] = {}
        self._programs: dict[int, Program | None] = {}

    def area(self, task: Task, address: int) -> Area | None:
        """The mapping around an address; None where nothing is mapped, or it cannot be read."""
        known = self._known.setdefault(task.mm, [])
        for area in known:
            if area.start <= address < area.end:
                return area
        try:
            area_found = self._area(task.mm, address) if task.mm else None
        except (MissingMemory, LookupError):
            return None
        if area_found is not None:
            known.append(area_found)
        return area_found

    def place(self, task: Task, address: int) -> Place | None:
        """Where an address lies, None where nothing is mapped."""
        area = self.area(task, address)
        if area is None:
            return None
        # What a program begins with as zeros is mapped behind the file, but not of the file.
        file = area if area.file else self.area(task, area.start - 1)
        try:
            program = self._program(file.file) if file is not None and file.file else None
            if file is not None and program is not None:
                linked = address - self._moved(task, file, program)
                if program.holds(linked):
                    return Place(area, program, linked, address)
        except (MissingMemory, LookupError):
            pass
        return Place(area, None, 0, address)

    def _moved(self, task: Task, area: Area, program: Program) -> int:
        """How far from where it was linked for a program is mapped."""
        here = area
        for _ in range(_DEEP):
            if not here.offset:
                return here.start - program.linked(0)
            before = self.area(task, here.start - 1)
            if before is None or before.file != area.file:
                break
            here = before
        return area.start - program.linked(area.offset)

    def _program(self, file: int) -> Program | None:
        inode = self._m.value("struct file", file, "f_inode")
        if inode not in self._programs:
            try:
                self._programs[inode] = Program(partial(self.cached, file))
            except (MissingMemory, LookupError):
                self._programs[inode] = None
        return self._programs[inode]

    def cached(self, file: int, offset: int, size: int) -> bytes | None:
        """Bytes of an open file, if they are in the page cache."""
        try:
            mapping = self._m.value("struct file", file, "f_mapping") if file else 0
            wanted = range(offset // PAGE, -(-(offset + size) // PAGE)) if mapping else range(0)
            pages = [self._page(mapping, index) for index in wanted]
            if not pages or not all(pages):
                return None
            self._m.evidence.prefetch((page, PAGE) for page in pages)
            out = b"".join(self._m.read(page, PAGE) for page in pages)
        except (MissingMemory, LookupError, FeatureError):
            return None
        return out[offset % PAGE :][:size]

    def _area(self, mm: int, address: int) -> Area | None:
        m, kind = self._m, "struct vm_area_struct"
        newer = m.has("struct mm_struct", "mm_mt")
        vma = self._in_maple(mm, address) if newer else self._in_rbtree(mm, address)
        if not vma or m.value(kind, vma, "vm_mm") != mm:
            return None
        start, end = m.value(kind, vma, "vm_start"), m.value(kind, vma, "vm_end")
        if not start <= address < end:
            return None
        offset = m.value(kind, vma, "vm_pgoff") * PAGE
        code = bool(m.value(kind, vma, "vm_flags") & _EXECUTABLE)
        return Area(start, end, m.value(kind, vma, "vm_file"), offset, code)

    def _in_maple(self, mm: int, address: int) -> int:
        """The entry of the maple tree ``mm->mm_mt`` for an address, 0 if none."""
        m = self._m
        entry = m.value("struct mm_struct", mm, "mm_mt.ma_root")
        if entry & 3 != _INTERNAL or entry <= _NODES:
            return entry
        for _ in range(_DEEP):
            which, node = entry >> _TYPE_SHIFT & _TYPE_MASK, entry & ~_NODE_MASK
            kind = "struct maple_arange_64" if which == _ARANGE else "struct maple_range_64"
            pivots = m.width(kind, "pivot") // 8
            raw = m.read(node + m.offset(kind, "pivot"), 8 * pivots)
            slot = pivots
            for number in range(pivots):
                pivot = int.from_bytes(raw[8 * number : 8 * number + 8], "little")
                if address <= pivot or (not pivot and number):
                    slot = number
                    break
            entry = m.u64(node + m.offset(kind, "slot") + 8 * slot)
            if which < _RANGE or not entry:
                return entry
        return 0

    def _in_rbtree(self, mm: int, address: int) -> int:
        """The same in the tree of kernels before 6.1."""
        m, kind = self._m, "struct vm_area_struct"
        node = m.value("struct mm_struct", mm, "mm_rb.rb_node")
        for _ in range(_DEEP):
            if not node:
                break
            vma = node - m.offset(kind, "vm_rb")
            if m.value(kind, vma, "vm_end") > address:
                if m.value(kind, vma, "vm_start") <= address:
                    return vma
                node = m.value("struct rb_node", node, "rb_left")
            else:
                node = m.value("struct rb_node", node, "rb_right")
        return 0

    def _page(self, mapping: int, index: int) -> int:
        """Where the page with that index of a file is in the kernel's memory, 0 if nowhere."""
        m = self._m
        entry = m.value("struct address_space", mapping, "i_pages.xa_head")
        if entry & 3 != _INTERNAL and index:
            return 0
        while entry & 3 == _INTERNAL and entry > _NODES:
            node = entry - _INTERNAL
            shift = m.value("struct xa_node", node, "shift")
            slot = index >> shift
            if slot >= _SLOTS and not m.value("struct xa_node", node, "parent"):
                return 0
            slots = node + m.offset("struct xa_node", "slots")
            entry = m.u64(slots + 8 * (slot & _SLOTS - 1))
            if entry & 3 == _INTERNAL and entry < _SLOTS << 2:  # a sibling of a larger page
                entry = m.u64(slots + 8 * (entry >> 2))
        if not entry or entry & 3:
            return 0
        first = m.value("struct page", entry, m.first("struct page", "index", "__folio_index"))
        page = entry + (index - first) * m.size("struct page")
        return self._tables.base + (page - self._pages) // m.size("struct page") * PAGE

    @cached_property
    def _pages(self) -> int:
        return self._m.u64(self._m.symbol("vmemmap_base"))


def mappings(look: Look) -> Mappings:
    """The mappings of a look, the same for all who ask."""
    if "mappings" not in look.cache:
        look.cache["mappings"] = Mappings(look.memory)
    found: Mappings = look.cache["mappings"]
    return found
