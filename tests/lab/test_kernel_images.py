"""Real kernel images at rest: BTF against DWARF, line tables against addr2line, source text."""

import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kwhy.emulate.callee import parameter_names
from kwhy.kernel.dwarftypes import DwarfTypes
from kwhy.kernel.image import ImageEvidence
from kwhy.kernel.lines import relative_file
from kwhy.kernel.model import Kernel, open_kernel
from kwhy.kernel.symbols import Symbol
from kwhy.kernel.types import Types
from kwhy.lab import fetch, kernels

Opened = Callable[[str], Kernel]
SLIDE = 0x0B20_0000
STRUCTS = (
    "task_struct", "file", "inode", "dentry", "tty_struct", "sk_buff", "mm_struct", "cred",
    "module", "signal_struct", "page", "super_block", "net_device", "sock",
    "vm_area_struct", "io_ring_ctx",
)  # fmt: skip
FUNCTIONS = ("vfs_read", "do_mmap", "__tty_check_change", "path_openat", "do_sys_openat2", "fput")


@pytest.fixture(scope="session")
def images() -> Opened:
    """``images("6.12")``: that kernel's image, as if KASLR had moved it."""
    opened: dict[str, Kernel] = {}

    def image(series: str) -> Kernel:
        if series not in opened:
            files = fetch.get_newest(kernels.resolve(series), ["debug", "source"])
            assert files.vmlinux_debug
            assert files.source_dir
            evidence = ImageEvidence(files.vmlinux_debug, SLIDE)
            opened[series] = open_kernel(evidence, files.vmlinux_debug, files.source_dir)
        return opened[series]

    return image


def layout(types: Types, name: str) -> dict[str, tuple[int, int, object]]:
    """Path to (offset, size, bits) of a struct's members, two levels deep."""
    top = types.named(f"struct {name}")
    assert top is not None
    out: dict[str, tuple[int, int, object]] = {}
    for one in types.fields(top):
        out[one.path] = (one.offset, one.size, one.bits)
        for two in types.fields(one.type):
            out[f"{one.path}.{two.path}"] = (one.offset + two.offset, two.size, two.bits)
    return out


def test_btf_and_dwarf_have_the_same_layouts(images: Opened, series: str) -> None:
    """Every member of well-known structs at the same place, bit fields included."""
    kernel = images(series)
    dwarf = kernel.types.dwarf
    assert dwarf is not None
    compared = 0
    for name in STRUCTS:
        if kernel.types.named(f"struct {name}") is None:
            continue
        ours = layout(kernel.types, name)
        assert layout(dwarf, name) == ours
        compared += len(ours)
    assert compared > 1500


def test_btf_and_dwarf_have_the_same_prototypes(images: Opened, series: str) -> None:
    """Names and types of parameters, spelled alike."""
    kernel = images(series)
    dwarf = kernel.types.dwarf
    assert isinstance(dwarf, DwarfTypes)
    for name in FUNCTIONS:
        one, two = kernel.types.prototype(name), dwarf.prototype(name)
        if kernel.symbols.named(name) and one is not None:
            assert two is not None
            spelled = [(n, dwarf.name(t)) for n, t in two.params]
            # drgn and BTF differ in the order of "unsigned long"; resolving makes them alike.
            resolved = [(n, kernel.types.named(text)) for n, text in spelled]
            assert [n for n, _ in one.params] == [n for n, _ in resolved]
            for (_n, mine), (_m, theirs) in zip(one.params, resolved, strict=True):
                if theirs is not None and theirs.maker == "vmlinux":
                    assert kernel.types.size(mine) == kernel.types.size(theirs)


ANNOTATION = re.compile(r"\b__(?:\w*acquires|\w*releases|must_hold)\w*\([^)]*\)")
"""What a function's head may say of locks behind its parameters."""


def namesakes(kernel: Kernel) -> dict[str, list[Symbol]]:
    """Names of the image that several functions have."""
    table = kernel.symbols.vmlinux
    named: dict[str, dict[int, Symbol]] = {}
    for symbol in map(table.symbol, range(len(table))):
        if symbol.code and not symbol.name.startswith("__") and "." not in symbol.name:
            named.setdefault(symbol.name, {})[symbol.address] = symbol
    return {name: list(found.values()) for name, found in named.items() if len(found) > 1}


def test_namesakes_have_each_its_own_prototype(images: Opened, series: str) -> None:
    """The parameters are those of the function's own source text, or not told."""
    kernel = images(series)
    several = namesakes(kernel)
    chosen = random.Random(3).sample(sorted(several), 60)
    right, wrong = 0, []
    for symbol in [one for name in chosen for one in several[name]]:
        frames, found = kernel.frames(symbol.address), kernel.prototype(symbol.address)
        text = (kernel.source(frames[-1].file) or "") if frames else ""
        truth = parameter_names(ANNOTATION.sub("", text), symbol.name)
        if truth is None or found is None or found.optimised:
            continue
        told = [name for name, _type in found.params]
        if told == [name for name in truth if name != "void"]:
            right += 1
        else:
            wrong.append((symbol, frames[-1].file, told, truth))
    assert [] == wrong
    assert right > 80


def test_a_function_does_not_get_an_inlined_namesakes_prototype(
    images: Opened, series: str
) -> None:
    """Two functions are called watchdog(); only that of the hung task detector has a symbol."""
    kernel = images(series)
    (symbol,) = (s for s in kernel.symbols.named("watchdog", modules=False) if s.code)
    assert "kernel/hung_task.c" == kernel.frames(symbol.address)[-1].file
    found = kernel.prototype(symbol.address, sure=True)
    assert found is not None
    assert ["dummy"] == [name for name, _type in found.params]
    assert not found.optimised


def test_without_debug_symbols_namesakes_have_no_prototype(images: Opened) -> None:
    """BTF knows names only."""
    kernel = images("6.12")
    assert kernel.vmlinux is not None
    plain = open_kernel(ImageEvidence(kernel.vmlinux, SLIDE), "none", "none")
    several = [one for found in namesakes(plain).values() for one in found]
    assert len(several) > 300
    assert {None} == {plain.prototype(symbol.address) for symbol in several[:200]}
    (symbol,) = plain.symbols.named("vfs_read")
    found = plain.prototype(symbol.address)
    assert found is not None
    assert ["file", "buf", "count", "pos"] == [name for name, _type in found.params]


def test_the_current_task_is_found_in_the_per_cpu_area(images: Opened, series: str) -> None:
    """Whatever this kernel calls it: current_task, pcpu_hot.current_task, const_current_task."""
    kernel = images(series)
    offset = None
    for name in ("pcpu_hot", "current_task", "const_current_task"):
        for table in (kernel.symbols.percpu, kernel.symbols.vmlinux):
            if offset is None and (found := table.named(name)):
                offset = table.symbol(found[0]).address
    assert offset is not None
    variable = kernel.types.percpu(offset)
    assert variable is not None
    assert variable[0].endswith("current_task")
    assert "struct task_struct *" == kernel.types.name(variable[1])


def sample(kernel: Kernel, count: int) -> list[int]:
    """Addresses inside some functions, the same at every run."""
    dice = random.Random(11)
    out = []
    for name in FUNCTIONS:
        for symbol in kernel.symbols.named(name)[:1]:
            out += [dice.randrange(symbol.address, symbol.end) for _ in range(count)]
    return out


@pytest.mark.skipif(shutil.which("addr2line") is None, reason="needs binutils")
def test_inlined_frames_are_those_of_addr2line(images: Opened, series: str) -> None:
    """The same chain of functions, files and lines, innermost first (addr2line has no columns)."""
    kernel = images(series)
    assert kernel.vmlinux is not None
    addresses = sample(kernel, 6)
    text = subprocess.run(
        ["addr2line", "-a", "-f", "-i", "-e", kernel.vmlinux],
        input="\n".join(f"{address - SLIDE:#x}" for address in addresses),
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    expected: list[list[tuple[str, str, str]]] = []
    rows = iter(text.splitlines())
    for row in rows:
        if row.startswith("0x"):
            expected.append([])
        else:
            file, _, line = next(rows).partition(":")
            expected[-1].append((row, relative_file(file), line.split(" ")[0]))
    for address, chain in zip(addresses, expected, strict=True):
        ours = [(f.function, f.file, str(f.line)) for f in kernel.frames(address)]
        assert [c[0] for c in chain] == [o[0] for o in ours]
        assert [Path(c[1]).name for c in chain] == [Path(o[1]).name for o in ours]
        assert [c[2] for c in chain if c[2] != "?"] == [
            o[2] for o, c in zip(ours, chain, strict=True) if c[2] != "?"
        ]
        assert all(frame.column > 0 for frame in kernel.frames(address) if frame.line)


def test_lines_fit_the_source_text(images: Opened, series: str) -> None:
    """The function of a frame is the one that the source has at that line.

    Not always: after inlining in parts, GCC leaves lines without their inlined function.
    """
    kernel = images(series)
    checked = wrong = 0
    for address in sample(kernel, 20):
        for frame in kernel.frames(address):
            parsed = kernel.parsed(frame.file)
            if parsed is None or not frame.line:
                continue
            function = parsed.function_at(frame.line)
            if function is not None:
                wrong += frame.function != function.name
                checked += 1
    assert checked > 60
    assert wrong <= 0.03 * checked


def test_the_first_reports_condition_is_found_by_its_text(images: Opened, series: str) -> None:
    """A jump of __tty_check_change belongs to is_current_pgrp_orphaned(); its comment is there."""
    kernel = images(series)
    texts = set()
    for symbol in kernel.symbols.variant("__tty_check_change"):
        for address in range(symbol.address, symbol.end):
            for frame in kernel.frames(address)[-1:]:
                parsed = kernel.parsed(frame.file)
                found = parsed.condition(frame.line, frame.column) if parsed else None
                if found is not None and found.certain:
                    texts.add(found.text)
    assert "is_current_pgrp_orphaned()" in texts
    file = kernel.parsed("drivers/tty/tty_jobctrl.c")
    assert file is not None
    assert "POSIX terminal changes" in file.comment_above("__tty_check_change")


def test_the_exception_table_points_into_code(images: Opened, series: str) -> None:
    """Every instruction that may fault lies in a function, but for nameless assembly."""
    kernel = images(series)
    entries = kernel.exception_table(kernel.symbols.start, kernel.symbols.end)
    assert len(entries) > 300
    found = [kernel.symbols.at(entry.insn) for entry in entries]
    assert all(symbol.code for symbol in found if symbol)
    assert found.count(None) <= 2  # .Lcopy_user_handle_tail has no symbol (before 6.4)
    assert all(kernel.symbols.in_image(entry.fixup) for entry in entries)
    assert {"uaccess", "fault", "clear_fs"} <= {entry.kind for entry in entries}
    known = [entry for entry in entries if entry.kind != "other"]
    assert len(known) > 0.85 * len(entries)
