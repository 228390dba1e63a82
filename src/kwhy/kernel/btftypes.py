"""The ``Types`` interface over BTF: layouts, prototypes, C spellings."""

import bisect
import re
from collections.abc import Callable
from functools import cached_property

from kwhy.errors import InputError
from kwhy.kernel import btf as b
from kwhy.kernel import layout
from kwhy.kernel.btf import Btf
from kwhy.kernel.symbols import base_name
from kwhy.kernel.types import Member, Prototype, TypeRef

_WORDS = {b.STRUCT: "struct", b.UNION: "union", b.ENUM: "enum", b.ENUM64: "enum", b.FWD: "struct"}
_QUALIFIERS = {b.CONST: "const", b.VOLATILE: "volatile", b.RESTRICT: "restrict"}
_BY_PREFIX = {
    "struct": frozenset({b.STRUCT}),
    "union": frozenset({b.UNION}),
    "enum": frozenset({b.ENUM, b.ENUM64}),
    "": frozenset({b.INT, b.TYPEDEF, b.FLOAT}),
}
_ALIASES = {
    "unsigned": "unsigned int", "long": "long int", "unsigned long": "long unsigned int",
    "short": "short int", "unsigned short": "short unsigned int", "long long": "long long int",
    "unsigned long long": "long long unsigned int", "bool": "_Bool",
}  # fmt: skip
_TYPE = re.compile(r"^(?:(struct|union|enum)\s+)?([A-Za-z_][\w ]*?)\s*((?:\*\s*)*)$")
_OPTIMISED = re.compile(r"\.(?:isra|constprop|part)\b")
MAX_DEPTH = layout.MAX_DEPTH


class BtfTypes:
    """Types of vmlinux and, when asked for, of modules."""

    def __init__(
        self,
        vmlinux: Btf,
        module: Callable[[str], bytes | None] | None = None,
        percpu_base: int = 0,
    ) -> None:
        self.vmlinux = vmlinux
        self._module = module
        self.percpu_base = percpu_base
        self._blobs: dict[str, Btf | None] = {"vmlinux": vmlinux}
        self._pointers: dict[str, TypeRef] = {}

    def blob(self, maker: str) -> Btf | None:
        """The BTF of vmlinux or a module, None if there is none (or it is damaged)."""
        if maker not in self._blobs:
            data = self._module(maker) if self._module else None
            try:
                self._blobs[maker] = Btf(data, self.vmlinux) if data else None
            except InputError:
                self._blobs[maker] = None
        return self._blobs[maker]

    def _at(self, type: TypeRef) -> tuple[Btf, int]:
        blob = self.blob(type.maker)
        if blob is None or not isinstance(type.key, int):
            return self.vmlinux, 0
        return blob, type.key

    def _ref(self, blob: Btf, type_id: int, maker: str) -> TypeRef:
        return TypeRef("vmlinux" if type_id < self.vmlinux.next_id else maker, type_id)

    def _resolved(self, blob: Btf, type_id: int) -> int:
        """Typedefs and qualifiers looked through; a forward declaration becomes its definition."""
        for _ in range(MAX_DEPTH):
            kind, _vlen, flag, target, _owner, _at = blob.record(type_id)
            if kind in b.MODIFIERS or kind == b.TYPEDEF:
                type_id = target
            elif kind == b.FWD:
                want = frozenset({b.UNION if flag else b.STRUCT})
                found = blob.named(blob.type_name(type_id), want)
                return found[0] if found else type_id
            else:
                return type_id
        return 0

    def named(self, name: str, module: str | None = None) -> TypeRef | None:
        """A type by C name with trailing pointers; pointer types must exist in the kernel's BTF.

        ``module`` may have what the kernel's own lacks, but no pointers to it.
        """
        words = " ".join(w for w in name.split() if w not in ("const", "volatile"))
        match = _TYPE.match(words)
        if not match:
            return None
        prefix, bare, stars = match[1] or "", match[2], match[3].count("*")
        bare = _ALIASES.get(bare, bare)
        if bare == "void" and not prefix:
            found = [0]
        else:
            found = self.vmlinux.named(bare, _BY_PREFIX[prefix])
        if not found:
            own = self.blob(module) if module and not stars else None
            found = own.named(bare, _BY_PREFIX[prefix]) if own else []
            return TypeRef(module or "", found[0]) if found else None
        ids = found
        for _ in range(stars):
            ids = [p for i in ids for p in self._pointers_to(i)]
            if not ids:
                return None
        return TypeRef("vmlinux", ids[0])

    @cached_property
    def _pointer_index(self) -> dict[int, list[int]]:
        words, start = self.vmlinux.words, self.vmlinux.start
        kinds = words[start + 1] >> 24 & 31
        out: dict[int, list[int]] = {}
        for index in (kinds == b.PTR).nonzero()[0]:
            out.setdefault(int(words[start[index] + 2]), []).append(
                int(index) + self.vmlinux.first_id
            )
        return out

    def _pointers_to(self, type_id: int) -> list[int]:
        return self._pointer_index.get(type_id, [])

    def prototype(self, function: str, module: str | None = None) -> Prototype | None:
        """From BTF_KIND_FUNC; pahole leaves out functions that differ or were optimised."""
        blob = self.blob(module) if module else self.vmlinux
        maker = module or "vmlinux"
        if blob is None:
            blob, maker = self.vmlinux, "vmlinux"
        for name in dict.fromkeys((function, base_name(function))):
            for type_id in blob.named(name, frozenset({b.FUNC})):
                _kind, _vlen, _flag, target, _owner, _at = blob.record(type_id)
                return self._prototype(blob, target, maker, bool(_OPTIMISED.search(function)))
        return None

    def _prototype(
        self, blob: Btf, proto: int, maker: str, optimised: bool = False
    ) -> Prototype | None:
        kind, _vlen, _flag, ret, _owner, _at = blob.record(proto)
        if kind != b.FUNC_PROTO:
            return None
        params = blob.params(proto)
        variadic = bool(params) and params[-1] == ("", 0)
        if variadic:
            params.pop()
        refs = tuple((name, self._ref(blob, type_id, maker)) for name, type_id in params)
        return Prototype(refs, self._ref(blob, ret, maker), variadic, optimised)

    def call_type(self, type: TypeRef) -> Prototype | None:
        """Of a function pointer (or pointer to one's typedef)."""
        blob, type_id = self._at(type)
        type_id = self._resolved(blob, type_id)
        if blob.kind(type_id) == b.PTR:
            type_id = self._resolved(blob, blob.record(type_id)[3])
        return self._prototype(blob, type_id, type.maker)

    def _size(self, blob: Btf, type_id: int, depth: int = 0) -> int | None:
        type_id = self._resolved(blob, type_id)
        kind, _vlen, _flag, value, owner, at = blob.record(type_id)
        if kind in (b.INT, b.STRUCT, b.UNION, b.ENUM, b.ENUM64, b.FLOAT):
            return value
        if kind == b.PTR:
            return 8
        if kind == b.ARRAY and depth < MAX_DEPTH:
            element, _index, count = owner.word(at, 3)
            size = self._size(blob, element, depth + 1)
            return None if size is None else size * count
        return None

    def size(self, type: TypeRef) -> int | None:
        """In bytes; None for void, functions and incomplete types."""
        return self._size(*self._at(type))

    def _kind(self, type: TypeRef) -> int:
        blob, type_id = self._at(type)
        return blob.kind(self._resolved(blob, type_id))

    def is_pointer(self, type: TypeRef) -> bool:
        """A pointer, typedefs looked through."""
        return self._kind(type) == b.PTR

    def is_struct(self, type: TypeRef) -> bool:
        """A struct or union, typedefs looked through."""
        return self._kind(type) in (b.STRUCT, b.UNION)

    def is_void(self, type: TypeRef) -> bool:
        """void, qualifiers looked through."""
        return self._kind(type) == b.VOID

    def _encoding(self, type: TypeRef) -> int:
        blob, type_id = self._at(type)
        kind, _vlen, _flag, _size, owner, at = blob.record(self._resolved(blob, type_id))
        return owner.word(at, 1)[0] >> 24 & 15 if kind == b.INT else 0

    def is_bool(self, type: TypeRef) -> bool:
        """BTF_INT_BOOL."""
        return bool(self._encoding(type) & 4)

    def is_signed(self, type: TypeRef) -> bool:
        """BTF_INT_SIGNED, or an enum whose kind_flag says so (or that has a negative constant)."""
        if self._encoding(type) & 1:
            return True
        blob, type_id = self._at(type)
        kind, _vlen, flag, *_ = blob.record(self._resolved(blob, type_id))
        return kind in (b.ENUM, b.ENUM64) and bool(flag)

    def enumerators(self, type: TypeRef) -> dict[int, str]:
        """Value to first name with it."""
        blob, type_id = self._at(type)
        out: dict[int, str] = {}
        for name, value in blob.enum_values(self._resolved(blob, type_id)):
            out.setdefault(value, name)
        return out

    def deref(self, type: TypeRef) -> TypeRef | None:
        """What a pointer points to (None for void *), or an array's element."""
        blob, type_id = self._at(type)
        kind, _vlen, _flag, target, owner, at = blob.record(self._resolved(blob, type_id))
        if kind == b.ARRAY:
            target = owner.word(at, 1)[0]
        elif kind != b.PTR:
            return None
        return self._ref(blob, target, type.maker) if target else None

    def name(self, type: TypeRef) -> str:
        """As C spells it."""
        blob, type_id = self._at(type)
        return self._spell(blob, type_id, "").rstrip()

    def _spell(self, blob: Btf, type_id: int, inner: str, depth: int = 0) -> str:
        kind, _vlen, _flag, target, owner, at = blob.record(type_id)
        if depth > MAX_DEPTH:
            return "..."
        space = " " if inner else ""
        if kind == b.VOID:
            return f"void{space}{inner}"
        if kind in _WORDS:
            word = "union" if kind == b.FWD and _flag else _WORDS[kind]
            return f"{word} {blob.type_name(type_id) or '{...}'}{space}{inner}"
        if kind in (b.INT, b.FLOAT, b.TYPEDEF):
            return f"{blob.type_name(type_id)}{space}{inner}"
        if kind == b.TYPE_TAG:
            return self._spell(blob, target, inner, depth + 1)
        if kind in _QUALIFIERS:
            word = _QUALIFIERS[kind]
            if blob.kind(target) == b.PTR:
                return self._spell(blob, target, f"{word} {inner}".rstrip(), depth + 1)
            return f"{word} {self._spell(blob, target, inner, depth + 1)}"
        if kind == b.PTR:
            under = target
            while blob.kind(under) in b.MODIFIERS:
                under = blob.record(under)[3]
            wrap = blob.kind(under) in (b.FUNC_PROTO, b.ARRAY)
            return self._spell(blob, target, f"(*{inner})" if wrap else f"*{inner}", depth + 1)
        if kind == b.ARRAY:
            element, _index, count = owner.word(at, 3)
            return self._spell(blob, element, f"{inner}[{count or ''}]", depth + 1)
        if kind == b.FUNC_PROTO:
            params = [
                "..." if not name and not p else self._spell(blob, p, "", depth + 1).rstrip()
                for name, p in blob.params(type_id)
            ]
            return self._spell(blob, target, f"{inner}({', '.join(params) or 'void'})", depth + 1)
        return blob.type_name(type_id)

    def fields(self, type: TypeRef) -> list[Member]:
        """Direct members, those of anonymous structs and unions unified with them."""
        blob, type_id = self._at(type)
        return self._fields(blob, self._resolved(blob, type_id), 0, type.maker, 0)

    def _fields(self, blob: Btf, type_id: int, base: int, maker: str, depth: int) -> list[Member]:
        out: list[Member] = []
        for name, target, bit, width in blob.members(type_id):
            if not name and depth < MAX_DEPTH:
                inner = self._resolved(blob, target)
                if blob.kind(inner) in (b.STRUCT, b.UNION):
                    out += self._fields(blob, inner, base + bit // 8, maker, depth + 1)
                continue
            size = self._size(blob, target) or 0
            place = bit // 8
            bits = None
            if width:
                place = bit // (8 * size) * size if size else bit // 8
                bits = (bit - 8 * place, width)
            out.append(Member(name, self._ref(blob, target, maker), base + place, size, bits))
        return out

    def field(self, type: TypeRef, path: str) -> Member | None:
        """By path: "ctrl.pgrp", "fd_array[3]"."""
        return layout.field(self, type, path)

    def member(self, type: TypeRef, byte_offset: int, size: int) -> list[Member]:
        """Fields that an access touches, best first."""
        return layout.member(self, type, byte_offset, size)

    def is_array(self, type: TypeRef) -> bool:
        """An array."""
        return self._kind(type) == b.ARRAY

    def array_length(self, type: TypeRef) -> int:
        """Number of elements, 0 for a flexible array."""
        blob, type_id = self._at(type)
        kind, _vlen, _flag, _t, owner, at = blob.record(self._resolved(blob, type_id))
        return owner.word(at, 3)[2] if kind == b.ARRAY else 0

    @cached_property
    def _percpu(self) -> tuple[list[int], list[tuple[int, int, int]]]:
        entries = self.vmlinux.datasec(".data..percpu")
        return [e[0] for e in entries], entries

    def percpu(self, offset: int) -> tuple[str, TypeRef] | None:
        """``offset`` as the code's %gs displacement has it (an address if not zero-based)."""
        relative = offset - self.percpu_base
        starts, entries = self._percpu
        index = bisect.bisect_right(starts, relative) - 1
        if index < 0 or relative >= entries[index][0] + max(entries[index][1], 1):
            return None
        start, _size, var = entries[index]
        type = TypeRef("vmlinux", self.vmlinux.record(var)[3])
        name = self.vmlinux.type_name(var)
        if self.is_struct(type):
            for member in self.member(type, relative - start, 8):
                if member.offset == relative - start:
                    return f"{name}.{member.path}", member.type
        return (name, type) if relative == start else None

    def variable(self, name: str, module: str | None = None) -> TypeRef | None:
        """From BTF_KIND_VAR: per-CPU variables, and all globals where pahole wrote them."""
        blob = self.blob(module) if module else self.vmlinux
        for type_id in blob.named(name, frozenset({b.VAR})) if blob else []:
            return self._ref(
                blob or self.vmlinux, (blob or self.vmlinux).record(type_id)[3], module or "vmlinux"
            )
        return None
