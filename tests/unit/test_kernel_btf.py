"""BTF read into types: layouts, bit fields, anonymous members, prototypes, modules, damage."""

import random
import struct

import pytest

from kwhy.errors import InputError
from kwhy.kernel import btf as b
from kwhy.kernel.btf import Btf
from kwhy.kernel.btftypes import BtfTypes
from kwhy.kernel.types import TypeRef


class Maker:
    """Builds a BTF blob; each method gives the id of the type that it adds."""

    def __init__(self, base: "Maker | None" = None) -> None:
        self.strings = b"\0" if base is None else b""
        self.string_base: int = 0 if base is None else base.string_base + len(base.strings)
        self.next_id: int = 1 if base is None else base.next_id
        self.types = b""

    def text(self, name: str) -> int:
        """Offset of a string; the same text always has the same."""
        if not name:
            return 0
        wanted = name.encode() + b"\0"
        padded = b"\0" + self.strings
        at = padded.find(b"\0" + wanted)
        if at < 0:
            at = len(self.strings)
            self.strings += wanted
        return self.string_base + at

    def add(
        self,
        kind: int,
        name: str,
        last: int,
        extra: tuple[int, ...] = (),
        vlen: int = 0,
        flag: int = 0,
    ) -> int:
        """One record; ``last`` is its size or type."""
        info = flag << 31 | kind << 24 | vlen
        self.types += struct.pack(f"<III{len(extra)}I", self.text(name), info, last, *extra)
        self.next_id += 1
        return self.next_id - 1

    def integer(self, name: str, size: int, encoding: int = 0) -> int:
        """A basic integer; encoding 1 signed, 4 bool."""
        return self.add(b.INT, name, size, (encoding << 24 | 8 * size,))

    def struct(
        self,
        name: str,
        size: int,
        members: list[tuple[str, int, int]],
        flag: int = 0,
        kind: int = b.STRUCT,
    ) -> int:
        """Members as (name, type, bit offset)."""
        extra = [word for n, t, place in members for word in (self.text(n), t, place)]
        return self.add(kind, name, size, tuple(extra), len(members), flag)

    def proto(self, ret: int, params: list[tuple[str, int]]) -> int:
        """A function type."""
        extra = [word for n, t in params for word in (self.text(n), t)]
        return self.add(b.FUNC_PROTO, "", ret, tuple(extra), len(params))

    def data(self) -> bytes:
        """The blob."""
        head = struct.pack(
            "<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings)
        )
        return head + self.types + self.strings


def sample() -> tuple[Maker, dict[str, int]]:
    """A small kernel's types."""
    m = Maker()
    ids = {
        "int": m.integer("int", 4, 1),
        "u8": m.integer("unsigned char", 1),
        "bool": m.integer("_Bool", 1, 4),
    }
    ids["u64"] = m.integer("long unsigned int", 8)
    pid = m.struct("pid", 8, [("count", ids["int"], 0)])
    ids["pidp"] = m.add(b.PTR, "", pid)
    ctrl = m.struct("", 16, [("pgrp", ids["pidp"], 0), ("session", ids["pidp"], 64)])
    union = m.struct("", 8, [("value", ids["u64"], 0), ("low", ids["int"], 0)], kind=b.UNION)
    array = m.add(b.ARRAY, "", 0, (ids["pidp"], ids["int"], 4))
    flexible = m.add(b.ARRAY, "", 0, (ids["int"], ids["int"], 0))
    members = [
        ("magic", ids["int"], 0),
        ("a", ids["int"], 32 | 3 << 24),
        ("b", ids["int"], 35 | 5 << 24),
        ("ctrl", ctrl, 64),
        ("", union, 192),
        ("fds", array, 256),
        ("tail", flexible, 512),
    ]
    ids["tty"] = m.struct("tty_struct", 64, members, flag=1)
    const = m.add(b.CONST, "", ids["tty"])
    ids["ttyp"] = m.add(b.PTR, "", ids["tty"])
    ids["cttyp"] = m.add(b.PTR, "", const)
    ids["typedef"] = m.add(b.TYPEDEF, "tty_t", ids["tty"])
    ids["enum"] = m.add(b.ENUM, "state", 4, (m.text("OFF"), 0, m.text("BAD"), 0xFFFFFFFF), 2, 1)
    wide = (m.text("BIG"), 0, 1)
    ids["enum64"] = m.add(b.ENUM64, "wide", 8, wide, 1)
    proto = m.proto(ids["int"], [("tty", ids["ttyp"]), ("sig", ids["int"])])
    m.add(b.FUNC, "check", proto)
    variadic = m.proto(0, [("fmt", ids["ttyp"]), ("", 0)])
    m.add(b.FUNC, "say", variadic)
    ids["fnptr"] = m.add(b.PTR, "", proto)
    hot = m.struct("pcpu_hot", 64, [("current_task", ids["ttyp"], 0), ("count", ids["int"], 64)])
    var = m.add(b.VAR, "pcpu_hot", hot, (1,))
    plain = m.add(b.VAR, "counter", ids["u64"], (0,))
    m.add(b.DATASEC, ".data..percpu", 4096, (var, 0x40, 64, plain, 0x100, 8), 2)
    return m, ids


@pytest.fixture
def types() -> BtfTypes:
    """The sample, parsed."""
    return BtfTypes(Btf(sample()[0].data()))


def ref(types: BtfTypes, name: str) -> TypeRef:
    """A type that must be there."""
    found = types.named(name)
    assert found is not None
    return found


def test_members_are_found_by_offset(types: BtfTypes) -> None:
    """An exact access names one field by its path."""
    found = types.member(ref(types, "struct tty_struct"), 8, 8)
    assert [("ctrl.pgrp", 8, 8, True)] == [(m.path, m.offset, m.size, m.exact) for m in found]
    assert "struct pid *" == types.name(found[0].type)


def test_bit_fields_are_listed_with_their_place(types: BtfTypes) -> None:
    """A byte that holds two bit fields offers both."""
    found = types.member(ref(types, "struct tty_struct"), 4, 1)
    assert [("a", (0, 3)), ("b", (3, 5))] == [(m.path, m.bits) for m in found]


def test_union_alternatives_come_best_fit_first(types: BtfTypes) -> None:
    """Members of an anonymous union are the struct's own; the size of the access ranks them."""
    tty = ref(types, "struct tty_struct")
    assert ["value", "low"] == [m.path for m in types.member(tty, 24, 8)]
    assert ["low", "value"] == [m.path for m in types.member(tty, 24, 4)]


def test_array_elements_have_an_index(types: BtfTypes) -> None:
    """Also in a flexible array at the end, beyond the struct's size."""
    tty = ref(types, "struct tty_struct")
    assert ["fds[3]"] == [m.path for m in types.member(tty, 56, 8)]
    assert "tail[2]" == types.member(tty, 72, 4)[0].path


def test_a_wide_access_lists_what_it_covers(types: BtfTypes) -> None:
    """A 16-byte copy touches two pointers."""
    found = types.member(ref(types, "struct tty_struct"), 8, 16)
    assert ["ctrl.pgrp"] == [m.path for m in found if m.offset == 8]
    assert not found[0].exact


def test_nothing_is_found_where_nothing_is(types: BtfTypes) -> None:
    """Outside, and in what is no struct."""
    assert [] == types.member(ref(types, "struct pid"), 100, 4)
    assert [] == types.member(TypeRef("vmlinux", 99999), 0, 4)
    assert [] == types.member(TypeRef("no such module", 5), 0, 4)


def test_fields_are_found_by_path(types: BtfTypes) -> None:
    """Through named and anonymous members, typedefs and arrays."""
    tty = ref(types, "tty_t")
    for path, offset in (("ctrl.session", 16), ("low", 24), ("fds[2]", 48)):
        found = types.field(tty, path)
        assert found is not None
        assert offset == found.offset
    assert None is types.field(tty, "ctrl.nothing")
    assert None is types.field(tty, "magic[1]")


@pytest.mark.parametrize(
    ("name", "spelled", "size"),
    [
        ("int", "int", 4),
        ("unsigned long", "long unsigned int", 8),
        ("struct tty_struct *", "struct tty_struct *", 8),
        ("tty_t", "tty_t", 64),
        ("enum state", "enum state", 4),
        ("bool", "_Bool", 1),
    ],
)
def test_types_are_found_by_their_c_names(
    types: BtfTypes, name: str, spelled: str, size: int
) -> None:
    """Names as C and as DWARF spell them."""
    found = ref(types, name)
    assert (spelled, size) == (types.name(found), types.size(found))


def test_spelling_of_pointers_arrays_and_functions(types: BtfTypes) -> None:
    """What C declares inside out is spelled so."""
    _maker, ids = sample()
    spelled = {key: types.name(TypeRef("vmlinux", ids[key])) for key in ("cttyp", "fnptr")}
    assert "const struct tty_struct *" == spelled["cttyp"]
    assert "int (*)(struct tty_struct *, int)" == spelled["fnptr"]
    field = types.field(ref(types, "struct tty_struct"), "fds")
    assert field is not None
    assert "struct pid *[4]" == types.name(field.type)


def test_prototypes(types: BtfTypes) -> None:
    """Of functions by name (suffixes allowed, with a warning), and behind pointers."""
    found = types.prototype("check.constprop.0")
    assert found is not None
    assert ["tty", "sig"] == [name for name, _type in found.params]
    assert (True, False, "int") == (found.optimised, found.variadic, types.name(found.ret))
    said = types.prototype("say")
    assert said is not None
    assert (1, True) == (len(said.params), said.variadic)
    _maker, ids = sample()
    behind = types.call_type(TypeRef("vmlinux", ids["fnptr"]))
    assert behind is not None
    assert found.params == behind.params
    assert None is types.prototype("nothing")


def test_kinds_of_types(types: BtfTypes) -> None:
    """Signedness, pointers, booleans, void, enums."""
    assert types.is_signed(ref(types, "int"))
    assert not types.is_signed(ref(types, "unsigned long"))
    assert types.is_bool(ref(types, "bool"))
    assert types.is_pointer(ref(types, "struct tty_struct *"))
    assert types.is_struct(ref(types, "tty_t"))
    assert types.is_void(ref(types, "void"))
    assert {0: "OFF", -1: "BAD"} == types.enumerators(ref(types, "enum state"))
    assert {1 << 32: "BIG"} == types.enumerators(ref(types, "enum wide"))
    inner = types.deref(ref(types, "struct tty_struct *"))
    assert ref(types, "struct tty_struct") == inner


def test_per_cpu_variables(types: BtfTypes) -> None:
    """By offset from the per-CPU base, with the field inside; or by address (since 6.15)."""
    found = types.percpu(0x40)
    assert found is not None
    assert ("pcpu_hot.current_task", "struct tty_struct *") == (found[0], types.name(found[1]))
    assert "counter" == (types.percpu(0x100) or ("",))[0]
    assert None is types.percpu(0x1000)
    assert None is types.percpu(0)
    moved = BtfTypes(Btf(sample()[0].data()), percpu_base=0xFFFF_FFFF_8300_0000)
    assert "counter" == (moved.percpu(0xFFFF_FFFF_8300_0100) or ("",))[0]


def test_a_module_continues_the_kernels_types() -> None:
    """Ids and strings of a split BTF count on; a forward declaration finds its definition."""
    base, ids = sample()
    module = Maker(base)
    forward = module.add(b.FWD, "tty_struct", 0)
    pointer = module.add(b.PTR, "", forward)
    proto = module.proto(ids["int"], [("tty", pointer), ("own", ids["pidp"])])
    module.add(b.FUNC, "module_function", proto)
    types = BtfTypes(Btf(base.data()), lambda name: module.data() if name == "mod" else None)
    found = types.prototype("module_function", "mod")
    assert found is not None
    assert [("tty", "mod"), ("own", "vmlinux")] == [(n, t.maker) for n, t in found.params]
    inner = types.deref(found.params[0][1])
    assert inner is not None
    assert "ctrl.pgrp" == types.member(inner, 8, 8)[0].path
    assert None is types.prototype("module_function")
    assert types.prototype("check", "no such module") is not None


def test_what_is_no_btf_is_told() -> None:
    """Too short, wrong magic, sections beyond the end."""
    data = sample()[0].data()
    for broken in (b"", b"x" * 100, data[:30], data[:-1], b"\0\0" + data[2:]):
        with pytest.raises(InputError):
            Btf(broken)


def test_damaged_btf_never_hangs_or_crashes() -> None:
    """Flipped words give odd types, or an InputError: never an endless walk."""
    data = sample()[0].data()
    dice = random.Random(5)
    for _ in range(300):
        copy = bytearray(data)
        copy[dice.randrange(24, len(copy))] = dice.randrange(256)
        types = BtfTypes(Btf(bytes(copy)))
        for key in range(1, types.vmlinux.next_id):
            one = TypeRef("vmlinux", key)
            types.name(one), types.size(one), types.member(one, 8, 8), types.call_type(one)
        types.percpu(0x40)
