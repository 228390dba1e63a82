"""The kernel under investigation: one object that answers by name, address and line."""

import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from kwhy.case import diskcache
from kwhy.case.evidence import JSON, Evidence, MissingMemory
from kwhy.errors import FeatureError, InputError, KwhyError
from kwhy.kernel import (
    debuginfo,
    extable,
    lines,
    modulebtf,
    program,
    prototypes,
    sourcetext,
    symbols,
)
from kwhy.kernel import modules as loaded
from kwhy.kernel.btf import Btf
from kwhy.kernel.btftypes import BtfTypes
from kwhy.kernel.debuginfo import Where
from kwhy.kernel.elf import ElfFile
from kwhy.kernel.extable import ExtableEntry
from kwhy.kernel.identity import Identity, identify
from kwhy.kernel.lines import LineTables, SourceFrame
from kwhy.kernel.source import SourceFile
from kwhy.kernel.symbols import Symbols, Table
from kwhy.kernel.tracesites import read_trace_sites
from kwhy.kernel.types import Prototype
from kwhy.kernel.typestack import TypeStack


def open_kernel(evidence: Evidence, debuginfo: Where = "auto", source: Where = "auto") -> "Kernel":
    """The kernel behind ``evidence``.

    ``debuginfo``/``source``: "auto" looks in the usual places, "none" does without, a path is used
    or refused (InputError when it belongs to another kernel).  Facts that a saved case already
    holds are taken from it, so that it explains the same on a machine without debug symbols.
    """
    return Kernel(evidence, debuginfo, source)


class Kernel:
    """See the attributes; everything is worked out at first use and remembered.

    ``notes`` collects what the answers had to do without, in sentences for the verdict.
    """

    def __init__(self, evidence: Evidence, debug: Where = "auto", source: Where = "auto") -> None:
        self.evidence = evidence
        self.identity: Identity = identify(evidence)
        self.release = self.identity.release
        self.build_id = self.identity.build_id
        self.arch = self.identity.arch
        note = evidence.facts.extra.get("note")  # how the evidence was had, where that matters
        self.notes: list[str] = [note] if isinstance(note, str) else []
        self._debug, self._source = debug, source
        self._frames: dict[int, list[SourceFrame]] = {}
        self._prototypes: dict[tuple[int, bool], Prototype | None] = {}
        self._texts: dict[str, str | None] = {}
        self._parsed: dict[str, SourceFile | None] = {}
        self._module_places: list[Path] = []
        if isinstance(debug, Path):
            _ = self.vmlinux  # a wrong path is told at once
        if isinstance(source, Path):
            _ = self._source_root

    # -- debug files -------------------------------------------------------------------------------

    @cached_property
    def vmlinux(self) -> Path | None:
        """The debug vmlinux of exactly this kernel, None if there is none (or none is wanted)."""
        if self._debug == "none":
            return None
        return debuginfo.find_debug(self.release, self.build_id, self._debug)

    @cached_property
    def _elf(self) -> ElfFile | None:
        return ElfFile(self.vmlinux) if self.vmlinux else None

    def module_file(self, name: str, build_id: str | None) -> Path | None:
        """The debug .ko of a module, None if there is none (or none is wanted)."""
        if self.vmlinux is None:
            return None
        places: tuple[Where, Where] = (self._debug, self.vmlinux)
        found = (debuginfo.find_module(self.release, name, build_id, place) for place in places)
        return next((path for path in found if path is not None), None)

    @property
    def has_lines(self) -> bool:
        """Whether source lines can be told (debug info at hand, or answers saved in the case)."""
        return self.evidence.answer("kernel/has_lines", lambda: self.vmlinux is not None) is True

    # -- symbols -----------------------------------------------------------------------------------

    @cached_property
    def symbols(self) -> Symbols:
        """Symbols at run-time addresses; modules' are read when first needed."""
        image, percpu = self._image_tables()
        return Symbols(image, percpu, self._module_tables)

    def _image_tables(self) -> tuple[Table, Table]:
        data = self.evidence.derived("symbols/vmlinux", self._make_symbols)
        if not data:
            raise FeatureError(self._without_symbols(), "kallsyms")
        try:
            table = Table.from_bytes(data)
        except ValueError as error:
            raise InputError(f"the case's symbol table is damaged: {error}") from error
        image, percpu, link = symbols.split_image(table)
        image.bias = self._text_address(image, link)
        return image, percpu

    def _without_symbols(self) -> str:
        if self.evidence.facts.hello:
            return (
                "the target's kernel symbols cannot be read: /proc/kallsyms needs CAP_SYSLOG "
                "(or kernel.kptr_restrict below 2)"
            )
        return (
            f"no symbols of the kernel {self.release} are found in its memory; give its debug "
            "symbols with --debuginfo PATH"
        )

    def _text_address(self, image: Table, link: int) -> int:
        """Run-time address of _text, linked at ``link``: by VMCOREINFO, else by kallsyms."""
        if self.identity.stext is not None and (found := image.named("_stext")):
            return self.identity.stext - int(image.address[found[0]])
        if self.identity.slide is not None and link:
            return link + self.identity.slide
        for line in (self.evidence.blob("kallsyms") or b"").splitlines():
            fields = line.split()
            if len(fields) >= 3 and fields[2] == b"_text":
                return int(fields[0], 16)
        raise KwhyError(
            "the place where the target's kernel was loaded is not known: neither /proc/kcore's "
            "VMCOREINFO nor /proc/kallsyms can be read"
        )

    def _make_symbols(self) -> bytes | None:
        """ELF symbols if debug info is there, else kallsyms; cached on disk by build-id."""
        if self._elf is not None:
            symtab, strings = self._elf.symtab()
            if len(symtab):
                code = {
                    i for i, (_name, header) in enumerate(self._elf.section_list) if header[2] & 4
                }
                return symbols.table_from_elf(symtab, strings, code).to_bytes()
        # Without VMCOREINFO the slide is not known, so the table serves this boot only.
        slide = self.identity.slide
        if slide is not None and (cached := diskcache.load(self.build_id, "symbols")):
            return cached
        table = symbols.tables_from_kallsyms(self.evidence.blob("kallsyms") or b"").get(None)
        if table is None or not table.named("_text"):
            return None
        data = _unslide(table, slide or 0).to_bytes()
        if slide is not None:
            diskcache.store(self.build_id, "symbols", data)
        return data

    def _module_tables(self) -> dict[str, Table]:
        out: dict[str, Table] = {}
        for module in self.modules:
            try:
                table = loaded.symbol_table(self.evidence, module)
            except MissingMemory:
                continue
            if len(table):
                out[module.name] = table
        if not out and (text := self.evidence.blob("kallsyms")):
            tables = symbols.tables_from_kallsyms(text)
            out = {name: table for name, table in tables.items() if name}
        return out

    @cached_property
    def modules(self) -> list[loaded.Module]:
        """The loaded modules; [] when memory or type information cannot tell."""
        head = self.symbols.address("modules")
        if head is None:
            return []
        try:
            return loaded.list_modules(self.evidence, self.types, head)
        except (MissingMemory, LookupError) as error:
            self.notes.append(f"the loaded modules cannot be listed from memory: {error}")
            return []

    def module_at(self, address: int) -> loaded.Module | None:
        """The module that an address belongs to."""
        if self.symbols.in_image(address):
            return None
        return next((m for m in self.modules if m.contains(address)), None)

    # -- memory ------------------------------------------------------------------------------------

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Fetch (address, size) ranges of code or data in one exchange with the target."""
        self.evidence.prefetch(ranges)

    def code(self, address: int, size: int) -> bytes:
        """Live bytes; those of the vmlinux file (with a note) where memory cannot be read."""
        try:
            return self.evidence.read(address, size)
        except MissingMemory:
            data = self.data_image(address, size) if self.symbols.in_image(address) else None
            if data is None:
                raise
            note = (
                "kernel memory cannot be read: code is that of the vmlinux file, not the live one"
            )
            if note not in self.notes:
                self.notes.append(note)
            return data

    @cached_property
    def trace_sites(self) -> frozenset[int] | None:
        """Where the function tracer patches; None when memory or type information cannot tell."""
        head = self.symbols.address("ftrace_pages_start")
        if head is None:
            return None
        try:
            return read_trace_sites(self.evidence, self.types, head)
        except (MissingMemory, LookupError):
            return None

    @property
    def _slide(self) -> int:
        found = self._elf.section_range(".text") if self._elf else None
        return self.symbols.vmlinux.bias - found[0] if found else 0

    def data_image(self, address: int, size: int) -> bytes | None:
        """Bytes of the vmlinux file at a run-time address (constant data), None without it."""
        elf, slide = self._elf, self._slide
        return self.evidence.derived(
            f"image/{address:x}+{size:x}", lambda: elf.at(address - slide, size) if elf else None
        )

    # -- types -------------------------------------------------------------------------------------

    @cached_property
    def types(self) -> TypeStack:
        """BTF first, DWARF for what it leaves out."""
        return TypeStack(
            self.evidence,
            self._btf,
            lambda: self._lines if self.vmlinux else None,
            self._percpu_symbol,
            diskcache.Known(self.build_id, "dwarf"),
        )

    def prototype(self, address: int, sure: bool = False) -> Prototype | None:
        """Of the function that starts at an address; None also if several could be its.

        ``sure``: see :func:`kwhy.kernel.prototypes.prototype`.
        """
        key = (address, sure)
        if key not in self._prototypes:
            symbol = self.symbols.at(address)
            found = prototypes.prototype(self, symbol, sure) if symbol else None
            self._prototypes[key] = found
        return self._prototypes[key]

    def _percpu_symbol(self, offset: int) -> tuple[str, int] | None:
        table = self.symbols.percpu
        found = table.containing(offset) if offset >= 0 else None
        symbol = None if found is None else table.symbol(found)
        return None if symbol is None else (symbol.name, symbol.address)

    @property
    def btf(self) -> Btf | None:
        """The kernel's own BTF, None if it has none."""
        return self._btf.vmlinux if self._btf else None

    @cached_property
    def _btf(self) -> BtfTypes | None:
        # The debug file's is the same and need not come over a link.
        elf = self._elf
        data = self.evidence.derived("btf/vmlinux", lambda: elf.section(".BTF")) if elf else None
        data = data or self.evidence.blob("btf/vmlinux")
        if not data:
            self.notes.append("the target has no BTF")
            return None
        start = self.symbols.address("__per_cpu_start")
        base = start if start and start > symbols.PER_CPU_LIMIT else 0
        return BtfTypes(Btf(data), self._module_btf, base)

    def _module_btf(self, name: str) -> bytes | None:
        list_head = self.symbols.address("btf_modules")
        return self.evidence.blob(f"btf/{name}") or self.evidence.derived(
            f"btf/{name} from memory",
            lambda: modulebtf.from_memory(self.evidence, self.types, list_head, name),
        )

    # -- source lines ------------------------------------------------------------------------------

    @cached_property
    def _lines(self) -> LineTables:
        tables = LineTables(self.evidence.read)
        if self.vmlinux is not None:
            start = self.symbols.vmlinux.bias
            tables.add_image(self.vmlinux, self.build_id, start, self.symbols.end - start)
        return tables

    def frames(self, address: int) -> list[SourceFrame]:
        """Innermost inline first, the out-of-line function last; [] without debug info."""
        found = self._frames.get(address)
        if found is None:
            key = f"frames/{address:x}"
            found = lines.from_json(
                self.evidence.answer(key, lambda: self._compute_frames(address))
            )
            self._frames[address] = found
        return found

    def frames_many(self, addresses: Iterable[int]) -> dict[int, list[SourceFrame]]:
        """``frames`` of many addresses (about 0.3 ms each when not yet known)."""
        return {address: self.frames(address) for address in addresses}

    def _compute_frames(self, address: int) -> JSON:
        if self.vmlinux is None:
            return []
        if not self.symbols.in_image(address):
            self._load_module(address)
        return lines.to_json(self._lines.frames(address))

    def _load_module(self, address: int) -> None:
        module = self.module_at(address)
        if module is None or module.name in self._lines.loaded:
            return
        build_id, sections = self._module_facts.get(module.name, ("", {}))
        path = self.module_file(module.name, build_id)
        if path is None or not sections:
            self._lines.loaded.add(module.name)
            self.notes.append(f"no debug info (or section addresses) of module {module.name}")
            return
        self._module_places.append(path.parent)
        self._lines.add_module(module.name, path, sections, module.ranges)

    @cached_property
    def _module_facts(self) -> dict[str, tuple[str, dict[str, int]]]:
        """Build-id and section addresses per module: as the agent told, else from memory (JSON)."""
        out: dict[str, tuple[str, dict[str, int]]] = {}
        data = self.evidence.blob("modules")
        if data is None:
            data = self.evidence.derived("modules from memory", lambda: program.module_facts(self))
        try:
            rows = json.loads(data or b"[]")
        except ValueError:
            rows = []
        for row in rows if isinstance(rows, list) else []:
            match row:
                case {"name": str(name), "build_id": str(build_id), "sections": dict(sections)}:
                    places = {str(k): v for k, v in sections.items() if isinstance(v, int) and v}
                    out[name] = (build_id, places)
        return out

    # -- source text -------------------------------------------------------------------------------

    @cached_property
    def banner(self) -> str:
        """/proc/version, or linux_banner from memory: "Linux version 6.12.117+deb12 ..."."""
        raw = self.evidence.blob("version")
        symbol = self.symbols.vmlinux_symbol("linux_banner") if not raw else None
        if symbol is not None:
            try:
                raw = self.evidence.read(symbol.address, min(symbol.size or 512, 512))
            except MissingMemory:
                raw = self.data_image(symbol.address, 512)
        return (raw or b"").split(b"\0")[0].decode("utf-8", "replace")

    @cached_property
    def _source_root(self) -> Path | None:
        return sourcetext.find_source(self.release, self.banner, self._source)

    def source(self, file: str) -> str | None:
        """Text of a source file ("fs/open.c") of exactly this version, else None."""
        if file not in self._texts:
            text = self.evidence.answer(f"source/{file}", lambda: self._read_source(file))
            self._texts[file] = text if isinstance(text, str) else None
        return self._texts[file]

    def _read_source(self, file: str) -> str | None:
        if self._source == "none":
            return None
        # A module from outside of the tree has its source beside it, if anywhere.
        for root in (self._source_root, *self._module_places):
            text = sourcetext.read_file(root, file) if root is not None else None
            if text is not None:
                return text
        return None

    def parsed(self, file: str) -> SourceFile | None:
        """A source file ready to be asked for conditions and statements, None without its text."""
        if file not in self._parsed:
            text = self.source(file)
            self._parsed[file] = SourceFile(file, text) if text is not None else None
        return self._parsed[file]

    # -- exception table ---------------------------------------------------------------------------

    def exception_table(self, start: int, end: int) -> list[ExtableEntry]:
        """Entries whose faulting instruction lies in [start, end)."""
        if self.symbols.in_image(start):
            return extable.between(self._image_extable, start, end)
        module = self.module_at(start)
        if module is None or not module.extable[1]:
            return []
        address, count = module.extable
        try:
            data = self.evidence.read(address, 12 * min(count, 100_000))
        except MissingMemory:
            return []
        return extable.between(extable.parse(data, address, self._handler), start, end)

    @cached_property
    def _image_extable(self) -> list[ExtableEntry]:
        start = self.symbols.address("__start___ex_table")
        stop = self.symbols.address("__stop___ex_table")
        if start is None or stop is None or not start < stop < start + (1 << 22):
            self.notes.append("the exception table is not known")
            return []
        try:
            data = self.evidence.read(start, stop - start)
        except MissingMemory:
            data = self.data_image(start, stop - start) or b""
        if not data:
            self.notes.append("the exception table cannot be read")
            return []
        return extable.parse(data, start, self._handler)

    def _handler(self, address: int) -> str | None:
        symbol = self.symbols.at(address)
        return symbol.name if symbol else None

    # -- the rest ----------------------------------------------------------------------------------

    def kmsg(self) -> list[str]:
        """The kernel log's lines, as the agent took them ("[   1.234567] text"); [] without."""
        raw = (self.evidence.blob("kmsg") or b"").decode("utf-8", "replace")
        # Records of /dev/kmsg (Documentation/ABI/testing/dev-kmsg): "prio,seq,us,flags;text", then
        # lines that begin with a space and hold the device.
        out = []
        for line in raw.splitlines():
            head, semicolon, text = line.partition(";")
            numbers = head.split(",")
            if semicolon and len(numbers) > 2 and numbers[2].isdecimal():
                out.append(f"[{int(numbers[2]) / 1e6:12.6f}] {text}")
        return out


def _unslide(table: Table, offset: int) -> Table:
    """A kallsyms table with what KASLR added (``offset``) taken off again."""
    import numpy as np

    address = table.address.astype(np.uint64)
    moved = table.select(np.ones(len(table), bool))
    high = moved.address < 0
    moved.address[high] = (address[high] - np.uint64(offset & symbols.MASK)).astype(np.int64)
    return moved
