"""Running kernels of every series: symbols, code, modules, and a case that answers the same."""

import random
from collections.abc import Callable
from pathlib import Path

from kwhy.case.casefile import CaseFile
from kwhy.case.live import LiveEvidence
from kwhy.kernel.model import Kernel, open_kernel
from kwhy.link import Link

Links = Callable[[str], Link]


def live(links: Links, series: str, debuginfo: str = "auto") -> tuple[LiveEvidence, Kernel]:
    """The session's guest, with debug symbols and source from the lab's cache."""
    evidence = LiveEvidence(links(series))
    where = "none" if debuginfo == "none" else "auto"
    return evidence, open_kernel(evidence, "none" if where == "none" else "auto", "auto")


def kallsyms(evidence: LiveEvidence) -> list[tuple[int, str, str, str | None]]:
    """(address, letter, name, module) as /proc/kallsyms has them."""
    rows = []
    for line in (evidence.blob("kallsyms") or b"").decode().splitlines():
        address, letter, name, *module = line.split()
        rows.append((int(address, 16), letter, name, module[0][1:-1] if module else None))
    return rows


def test_symbols_are_where_kallsyms_says(links: Links, series: str) -> None:
    """Functions and global variables, of the image and of modules, at run-time addresses."""
    evidence, kernel = live(links, series)
    rows = [row for row in kallsyms(evidence) if row[1] in "tTDB" and row[0] >> 63]
    generated = {"bpf", "__builtin__ftrace", "__builtin__kprobes"}
    rows = [row for row in rows if row[3] not in generated]
    modules = [row for row in rows if row[3]]
    dice = random.Random(1)
    assert "kallsyms" not in evidence.blobs or evidence.blobs["kallsyms"]
    missing = []
    for address, letter, name, module in dice.sample(rows, 1500) + modules[:300]:
        if name not in kernel.symbols.names_at(address):
            missing.append((hex(address), letter, name, module))
    assert [] == missing


def test_symbols_without_debug_info_are_the_same(links: Links, series: str) -> None:
    """--debuginfo none: functions at the same addresses, from kallsyms alone."""
    _evidence, full = live(links, series)
    _other, plain = live(links, series, "none")
    assert not plain.has_lines
    for name in ("__x64_sys_ioctl", "vfs_read", "do_mmap", "linux_banner", "modules"):
        assert full.symbols.address(name) == plain.symbols.address(name)
    start = full.symbols.address("vfs_read")
    assert start is not None
    assert [] == plain.frames(start + 8)
    found = plain.symbols.at(start + 8)
    assert found is not None
    assert "vfs_read" == found.name
    proto = plain.types.prototype("vfs_read")
    assert proto is not None
    assert "file" == proto.params[0][0]


def test_live_code_is_the_images_but_for_what_the_kernel_patches(links: Links, series: str) -> None:
    """Alternatives, ftrace sites and static keys differ; most bytes do not."""
    _evidence, kernel = live(links, series)
    same = total = 0
    functions = ("vfs_read", "do_mmap", "path_openat", "__x64_sys_ioctl", "do_sys_openat2")
    found = [kernel.symbols.named(name)[0] for name in functions]
    kernel.prefetch([(symbol.address, symbol.size) for symbol in found])
    for symbol in found:
        now = kernel.code(symbol.address, symbol.size)
        was = kernel.data_image(symbol.address, symbol.size)
        assert was is not None
        total += len(now)
        same += sum(a == b for a, b in zip(now, was, strict=True))
    assert same > 0.85 * total
    assert [] == kernel.notes


def test_modules_have_ranges_symbols_and_lines(links: Links, series: str) -> None:
    """Read from memory, without /proc/kallsyms; the names are those of /proc/modules."""
    evidence, kernel = live(links, series)
    names = {name for name, _facts in kernel._module_facts.items()}
    assert names
    assert names == {module.name for module in kernel.modules}
    lined = 0
    for module in kernel.modules:
        table = kernel.symbols.modules[module.name]
        for index in table._code[:5]:
            symbol = table.symbol(int(index))
            found = kernel.symbols.at(symbol.address)
            assert found is not None
            assert module.name == found.module
            assert module.contains(symbol.address)
            lined += bool(kernel.frames(symbol.address + symbol.size - 1))
    assert lined
    assert "kallsyms" not in evidence.blobs


def test_kernel_memory_reads_as_its_types_say(links: Links, series: str) -> None:
    """init_task's name by struct offset is the idle task's: "swapper", perhaps with its CPU."""
    evidence, kernel = live(links, series)
    task = kernel.types.named("struct task_struct")
    address = kernel.symbols.address("init_task")
    assert task is not None
    assert address is not None
    comm = kernel.types.field(task, "comm")
    assert comm is not None
    assert evidence.read(address + comm.offset, comm.size).startswith(b"swapper")
    assert any("Linux version" in line for line in kernel.kmsg())


def test_a_case_answers_the_same_without_debug_info_and_target(
    links: Links, series: str, tmp_path: Path
) -> None:
    """Everything that was asked is answered alike by the saved case alone."""
    evidence, kernel = live(links, series)

    def ask(one: Kernel) -> list[object]:
        symbol = one.symbols.named("vfs_read")[0]
        frames = [one.frames(address) for address in range(symbol.address, symbol.end, 9)]
        parsed = one.parsed("fs/read_write.c")
        module = one.modules[0]
        return [
            one.release,
            one.build_id,
            symbol,
            one.code(symbol.address, symbol.size),
            frames,
            parsed.functions if parsed else None,
            one.types.prototype("vfs_read"),
            one.types.prototype("link_path_walk.part.0.constprop.0"),
            one.types.variable("init_task"),
            one.exception_table(one.symbols.start, one.symbols.end),
            module,
            one.symbols.at(module.text[0] + 32),
            one.kmsg(),
            one.banner,
            one.has_lines,
        ]

    answers = ask(kernel)
    evidence.save(tmp_path / "x.kwhy")
    assert answers == ask(open_kernel(CaseFile(tmp_path / "x.kwhy"), "none", "none"))


def test_trace_sites_are_those_that_the_tracer_lists(links: Links, series: str) -> None:
    """By number, and by address where the kernel tells that (since 6.5)."""
    evidence, kernel = live(links, series, "none")
    names = (evidence.blob("available_filter_functions") or b"").splitlines()
    lines = (evidence.blob("available_filter_functions_addrs") or b"").splitlines()
    assert kernel.trace_sites is not None
    assert len(names) == len(kernel.trace_sites)
    assert not lines or {int(line.split()[0], 16) for line in lines} == kernel.trace_sites
