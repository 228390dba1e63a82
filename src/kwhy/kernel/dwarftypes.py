"""The ``Types`` interface over DWARF, by drgn: for kernels without BTF, and to check BTF."""

import re
from dataclasses import replace
from typing import Any

from kwhy.kernel import layout
from kwhy.kernel.symbols import Symbol, base_name
from kwhy.kernel.types import Member, Prototype, TypeRef

_OPTIMISED = re.compile(r"\.(?:isra|constprop|part)\b")


class DwarfTypes:
    """Types of the program of a ``LineTables``; references count in order of appearance."""

    def __init__(self, tables: Any) -> None:
        import drgn

        self._drgn = drgn
        self._program = tables.program
        self._types: list[Any] = []

    def _ref(self, type: Any) -> TypeRef:
        self._types.append(type)
        return TypeRef("dwarf", len(self._types) - 1)

    def _type(self, type: TypeRef) -> Any:
        return self._types[int(type.key)]

    def _plain(self, type: TypeRef) -> Any:
        here = self._type(type)
        while here.kind == self._drgn.TypeKind.TYPEDEF:
            here = here.type
        return here

    def named(self, name: str, module: str | None = None) -> TypeRef | None:
        """By C name; ``module`` is of no use, types of loaded debug files are all there."""
        try:
            return self._ref(self._program.type(name))
        except (LookupError, SyntaxError):
            return None

    def prototype(self, function: str, module: str | None = None) -> Prototype | None:
        """Of a function by its DIE."""
        for name in dict.fromkeys((function, base_name(function))):
            try:
                type = self._program.function(name).type_
            except LookupError:
                continue
            found = self._prototype(type)
            if found is not None:
                optimised = bool(_OPTIMISED.search(function))
                return Prototype(found.params, found.ret, found.variadic, optimised)
        return None

    def prototype_at(self, function: Symbol, file: str) -> Prototype | None:
        """Of the function of source file ``file`` that starts at ``function.address``.

        ``optimised`` also where the definition found starts elsewhere, or nowhere: that of an
        inlined function may list its parameters in another order than the source (gcc does).
        """
        drgn = self._drgn
        try:
            definition = self._program.function(base_name(function.name), file)
            found, address = self._prototype(definition.type_), definition.address_
        except (LookupError, SyntaxError, drgn.BadDataError):
            return None
        if found is None:
            return None
        sure = address == function.address or len(found.params) < 2
        return replace(found, optimised=not sure or bool(_OPTIMISED.search(function.name)))

    def _prototype(self, type: Any) -> Prototype | None:
        if type.kind != self._drgn.TypeKind.FUNCTION:
            return None
        params = tuple((p.name or "", self._ref(p.type)) for p in type.parameters)
        return Prototype(params, self._ref(type.type), type.is_variadic)

    def call_type(self, type: TypeRef) -> Prototype | None:
        """Of a function pointer."""
        here = self._plain(type)
        if here.kind == self._drgn.TypeKind.POINTER:
            here = self._plain(self._ref(here.type))
        return self._prototype(here)

    def variable(self, name: str, module: str | None = None) -> TypeRef | None:
        """Of a global variable."""
        try:
            return self._ref(self._program.variable(name).type_)
        except LookupError:
            return None

    def percpu(self, offset: int) -> tuple[str, TypeRef] | None:
        """Not known from here: DWARF has no index of per-CPU variables."""
        return None

    def size(self, type: TypeRef) -> int | None:
        """In bytes."""
        try:
            return int(self._drgn.sizeof(self._type(type)))
        except TypeError:
            return None

    def name(self, type: TypeRef) -> str:
        """As C spells it."""
        return str(self._type(type).type_name())

    def is_signed(self, type: TypeRef) -> bool:
        """A signed integer."""
        here = self._plain(type)
        if here.kind == self._drgn.TypeKind.ENUM:
            here = here.type
        return here is not None and here.kind == self._drgn.TypeKind.INT and here.is_signed

    def is_pointer(self, type: TypeRef) -> bool:
        """A pointer."""
        return bool(self._plain(type).kind == self._drgn.TypeKind.POINTER)

    def is_bool(self, type: TypeRef) -> bool:
        """_Bool."""
        return bool(self._plain(type).kind == self._drgn.TypeKind.BOOL)

    def is_struct(self, type: TypeRef) -> bool:
        """A struct or union."""
        kinds = (self._drgn.TypeKind.STRUCT, self._drgn.TypeKind.UNION)
        return self._plain(type).kind in kinds

    def is_array(self, type: TypeRef) -> bool:
        """An array."""
        return bool(self._plain(type).kind == self._drgn.TypeKind.ARRAY)

    def array_length(self, type: TypeRef) -> int:
        """Number of elements, 0 if unknown."""
        return int(self._plain(type).length or 0)

    def is_void(self, type: TypeRef) -> bool:
        """void."""
        return bool(self._plain(type).kind == self._drgn.TypeKind.VOID)

    def enumerators(self, type: TypeRef) -> dict[int, str]:
        """Value to first name with it."""
        here = self._plain(type)
        out: dict[int, str] = {}
        if here.kind == self._drgn.TypeKind.ENUM:
            for name, value in here.enumerators or ():
                out.setdefault(int(value), name)
        return out

    def deref(self, type: TypeRef) -> TypeRef | None:
        """What a pointer points to, or an array's element."""
        here = self._plain(type)
        kinds = self._drgn.TypeKind
        if here.kind not in (kinds.POINTER, kinds.ARRAY) or here.type.kind == kinds.VOID:
            return None
        return self._ref(here.type)

    def fields(self, type: TypeRef) -> list[Member]:
        """Direct members, anonymous ones unified."""
        return self._fields(self._plain(type), 0, 0)

    def _fields(self, type: Any, base: int, depth: int) -> list[Member]:
        kinds = self._drgn.TypeKind
        out: list[Member] = []
        if type.kind not in (kinds.STRUCT, kinds.UNION) or depth > layout.MAX_DEPTH:
            return out
        for member in type.members or ():
            if not member.name:
                out += self._fields(
                    self._plain(self._ref(member.type)), base + member.bit_offset // 8, depth + 1
                )
                continue
            ref = self._ref(member.type)
            size = self.size(ref) or 0
            place, bits = member.bit_offset // 8, None
            if member.bit_field_size:
                place = place // size * size if size else place
                bits = (member.bit_offset - 8 * place, member.bit_field_size)
            out.append(Member(member.name, ref, base + place, size, bits))
        return out

    def field(self, type: TypeRef, path: str) -> Member | None:
        """A field by its path."""
        return layout.field(self, type, path)

    def member(self, type: TypeRef, byte_offset: int, size: int) -> list[Member]:
        """Fields that an access touches, best first."""
        return layout.member(self, type, byte_offset, size)
