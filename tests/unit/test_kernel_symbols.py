"""Symbol tables: containing symbols, aliases, sizes, modules, kallsyms, saving."""

import numpy as np
import pytest

from kwhy.kernel.elf import SYMBOL
from kwhy.kernel.symbols import (
    CODE,
    Symbols,
    Table,
    base_name,
    split_image,
    table_from_elf,
    tables_from_kallsyms,
)

TEXT = 0xFFFF_FFFF_8100_0000
FUNC, OBJECT, NOTYPE = 2, 1, 0


def elf_table(rows: list[tuple[str, int, int, int, int]]) -> Table:
    """From (name, address, size, type, binding) in section 1, which holds code."""
    strings, symtab = b"\0", np.zeros(len(rows), SYMBOL)
    for i, (name, address, size, kind, binding) in enumerate(rows):
        symtab[i] = (
            len(strings),
            binding << 4 | kind,
            0,
            1 if kind != OBJECT else 2,
            address,
            size,
        )
        strings += name.encode() + b"\0"
    return table_from_elf(symtab, strings, {1})


ROWS = [
    ("_text", TEXT, 0, NOTYPE, 1),
    ("_stext", TEXT, 0, NOTYPE, 1),
    ("first", TEXT, 0x20, FUNC, 1),
    ("__do_sys_getpid", TEXT + 0x40, 0x10, FUNC, 0),
    ("__x64_sys_getpid", TEXT + 0x40, 0x10, FUNC, 1),
    ("__ia32_sys_getpid", TEXT + 0x40, 0x10, FUNC, 1),
    ("entry", TEXT + 0x80, 0x40, NOTYPE, 1),
    ("entry_inner", TEXT + 0xA0, 0, NOTYPE, 1),
    ("walk.part.0.constprop.0", TEXT + 0x100, 0x30, FUNC, 0),
    ("walk.cold", TEXT + 0x200, 0x8, FUNC, 0),
    ("table", TEXT + 0x1000, 0x100, OBJECT, 1),
    ("_end", TEXT + 0x2000, 0, NOTYPE, 1),
    ("hot", 0x1000, 64, OBJECT, 1),
]


def symbols(bias: int = TEXT) -> Symbols:
    """The sample at a run-time place."""
    image, percpu, base = split_image(elf_table(ROWS))
    assert base == TEXT
    image.bias = bias
    module = tables_from_kallsyms(
        b"ffffffffc0000000 t mod_f\t[mod]\nffffffffc0000100 d mod_d\t[mod]\n"
    )
    return Symbols(image, percpu, lambda: {"mod": module["mod"]})


def test_the_symbol_around_an_address() -> None:
    """Inside a function, but not in the padding behind it."""
    table = symbols()
    found = table.at(TEXT + 0x1F)
    assert found is not None
    assert ("first", TEXT, 0x20, None) == (found.name, found.address, found.size, found.module)
    assert found.end == TEXT + 0x20
    assert None is table.at(TEXT + 0x35)


def test_kaslr_moves_the_image_but_not_the_zero_based_per_cpu_area() -> None:
    """Run-time addresses everywhere; per-CPU offsets stay."""
    moved = symbols(TEXT + 0x1200_0000)
    found = moved.at(TEXT + 0x1200_0000 + 5)
    assert found is not None
    assert "first" == found.name
    assert None is moved.at(TEXT + 5)
    assert TEXT + 0x1200_1000 == moved.address("table")
    place = moved.percpu.containing(0x1010)
    assert place is not None
    assert "hot" == moved.percpu.symbol(place).name


def test_of_aliases_the_best_known_is_shown() -> None:
    """__x64_sys_... before __do_sys_... and __ia32_sys_...; all are listed."""
    table = symbols()
    found = table.at(TEXT + 0x44)
    assert found is not None
    assert "__x64_sys_getpid" == found.name
    assert {"__x64_sys_getpid", "__ia32_sys_getpid", "__do_sys_getpid"} == set(
        table.names_at(TEXT + 0x44 - 4)
    )


def test_labels_inside_assembly_belong_to_the_sized_symbol() -> None:
    """entry_SYSCALL_64_after_hwframe lies in entry_SYSCALL_64."""
    found = symbols().at(TEXT + 0xA4)
    assert found is not None
    assert "entry" == found.name


def test_a_symbol_without_size_reaches_to_the_next() -> None:
    """kallsyms tells no sizes."""
    text = b"ffffffff81000000 T _text\nffffffff81000040 t a\nffffffff81000090 t b\n"
    table = tables_from_kallsyms(text)[None]
    found = table.containing(TEXT + 0x45)
    assert found is not None
    assert ("a", 0x50) == (table.symbol(found).name, table.symbol(found).size)


def test_names_that_share_their_tail_are_found() -> None:
    """A linker lets "walk" and "side_walk" share one string; offsets decide."""
    symtab = np.zeros(2, SYMBOL)
    symtab[0] = (1, FUNC, 0, 1, TEXT, 8)
    symtab[1] = (6, FUNC, 0, 1, TEXT + 16, 8)
    table = table_from_elf(symtab, b"\0side_walk\0", {1})
    assert [TEXT + 16] == [table.symbol(i).address for i in table.named("walk")]
    assert [TEXT] == [table.symbol(i).address for i in table.named("side_walk")]
    assert [] == table.named("alk")


def test_variants_share_a_base_name() -> None:
    """The parts that the compiler made of one function."""
    assert ["walk.part.0.constprop.0", "walk.cold"] == [s.name for s in symbols().variant("walk")]


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("f", "f"),
        ("f.cold", "f"),
        ("f.part.0.constprop.0", "f"),
        ("f.isra.0.cold", "f"),
        ("f.llvm.1234", "f"),
        ("a.b", "a.b"),
    ],
)
def test_base_names(name: str, base: str) -> None:
    """Suffixes of the compiler go, others stay."""
    assert base == base_name(name)


def test_modules_are_read_only_when_needed() -> None:
    """Addresses and names of the image do not touch the modules."""
    image, percpu, _base = split_image(elf_table(ROWS))
    image.bias = TEXT
    asked = []

    def load() -> dict[str, Table]:
        asked.append(1)
        return {}

    table = Symbols(image, percpu, load)
    table.at(TEXT + 3)
    table.named("first")
    assert [] == asked
    assert None is table.at(0xFFFF_FFFF_C000_0000)
    assert [1] == asked


def test_module_symbols_carry_their_module() -> None:
    """By address and by name."""
    table = symbols()
    found = table.at(0xFFFF_FFFF_C000_0010)
    assert found is not None
    assert ("mod_f", "mod") == (found.name, found.module)
    assert ["mod"] == [symbol.module for symbol in table.named("mod_f")]


def test_modules_between_the_parts_of_another() -> None:
    """A symbol's guessed size may span other modules: the nearest symbol is the right one."""
    image, percpu, _base = split_image(elf_table(ROWS))
    image.bias = TEXT
    tables = tables_from_kallsyms(
        b"ffffffffc0000000 r __kstrtabns_x\t[one]\nffffffffc0009000 t one_f\t[one]\n"
        b"ffffffffc0004000 t two_f\t[two]\nffffffffc0004100 t two_g\t[two]\n"
    )
    modules = {name: table for name, table in tables.items() if name}
    found = Symbols(image, percpu, lambda: modules).at(0xFFFF_FFFF_C000_4010)
    assert found is not None
    assert ("two_f", "two") == (found.name, found.module)


def test_hidden_kallsyms_are_no_symbols() -> None:
    """Without CAP_SYSLOG every address is zero."""
    assert {} == tables_from_kallsyms(b"0000000000000000 T _text\n0000000000000000 t a\nbad line\n")


def test_a_table_survives_saving() -> None:
    """The same answers after to_bytes and from_bytes; damage is told."""
    table = elf_table(ROWS)
    again = Table.from_bytes(table.to_bytes())
    assert [table.symbol(i) for i in range(len(table))] == [
        again.symbol(i) for i in range(len(again))
    ]
    assert CODE == int(again.kind[again.named("first")[0]]) & 15
    data = table.to_bytes()
    for broken in (b"", data[:15], data[:100], b"x" + data[1:], data[:16] + b"\xff" * 60):
        with pytest.raises(ValueError, match="symbol table"):
            Table.from_bytes(broken)
