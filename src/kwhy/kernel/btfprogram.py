"""BTF as a source of types and objects for drgn, where a kernel has no debug info at hand.

Struct layouts, enumerations, functions with their prototypes, per-CPU variables; globals only from
kernels whose BTF lists them.
"""

from collections.abc import Callable
from typing import Any

from kwhy.kernel import btf as b
from kwhy.kernel.btf import Btf
from kwhy.kernel.symbols import Symbols

_MAX_DEPTH = 64


class BtfSource:
    """Type and object finders over the vmlinux BTF; types are made when they are asked for."""

    def __init__(self, program: Any, btf: Btf, symbols: Symbols) -> None:
        import drgn

        self._drgn = drgn
        self._program = program
        self._btf = btf
        self._symbols = symbols
        self._made: dict[int, Any] = {}
        self._constants: dict[str, tuple[int, int]] | None = None
        self._kinds = {
            drgn.TypeKind.STRUCT: frozenset({b.STRUCT}), drgn.TypeKind.UNION: frozenset({b.UNION}),
            drgn.TypeKind.ENUM: frozenset({b.ENUM, b.ENUM64}),
            drgn.TypeKind.TYPEDEF: frozenset({b.TYPEDEF}), drgn.TypeKind.INT: frozenset({b.INT}),
            drgn.TypeKind.BOOL: frozenset({b.INT}),
        }  # fmt: skip

    def register(self) -> None:
        """Make drgn ask here first."""
        self._program.register_type_finder("btf", self._find_type, enable_index=0)
        self._program.register_object_finder("btf", self._find_object, enable_index=0)

    def prototype(self, name: str) -> Any:
        """The drgn function type of a function of the kernel image; None if BTF has none.

        To be preferred to DWARF's, whose out-of-line copies of inlined functions may list their
        parameters in another order than the source (seen with gcc 12: ring_buffer_empty_cpu).
        """
        found = self._btf.named(name, frozenset({b.FUNC}))
        return self._type(self._btf.record(found[0])[3]) if found else None

    def _find_type(self, _program: Any, kinds: Any, name: str, _file: str | None) -> Any:
        wanted: frozenset[int] = frozenset()
        for kind, mine in self._kinds.items():
            if kind in kinds:
                wanted |= mine
        for type_id in self._btf.named(name, wanted):
            made = self._type(type_id)
            if made.kind in kinds:
                return made
        return None

    def _find_object(self, _program: Any, name: str, flags: Any, _file: str | None) -> Any:
        drgn, want = self._drgn, self._drgn.FindObjectFlags
        if flags & want.FUNCTION:
            found = self._symbols.named(name, modules=False)
            kind = self.prototype(name)
            if found and found[0].code and kind is not None:
                return drgn.Object(self._program, kind, address=found[0].address)
        if flags & want.VARIABLE:
            place = self._place(name)
            for type_id in self._btf.named(name, frozenset({b.VAR})) if place is not None else []:
                kind = self._type(self._btf.record(type_id)[3])
                return drgn.Object(self._program, kind, address=place)
        if flags & want.CONSTANT and name in self._enumerators():
            type_id, value = self._enumerators()[name]
            return drgn.Object(self._program, self._type(type_id), value)
        return None

    def _place(self, name: str) -> int | None:
        percpu = self._symbols.percpu.named(name)
        if percpu:
            return self._symbols.percpu.symbol(percpu[0]).address
        return self._symbols.address(name)

    def _enumerators(self) -> dict[str, tuple[int, int]]:
        if self._constants is None:
            self._constants = {}
            for type_id in range(1, self._btf.next_id):
                if self._btf.kind(type_id) in (b.ENUM, b.ENUM64):
                    for name, value in self._btf.enum_values(type_id):
                        self._constants.setdefault(name, (type_id, value))
        return self._constants

    def _type(self, type_id: int, depth: int = 0) -> Any:
        made = self._made.get(type_id)
        if made is None:
            if depth > _MAX_DEPTH:
                return self._program.void_type()
            made = self._made[type_id] = self._make(type_id, depth)
        return made

    def _make(self, type_id: int, depth: int) -> Any:
        drgn, program, btf = self._drgn, self._program, self._btf
        kind, _vlen, flag, value, owner, at = btf.record(type_id)
        name = btf.type_name(type_id)
        if kind == b.INT:
            return self._integer(name, value, owner.word(at, 1)[0] >> 24 & 15)
        if kind == b.FLOAT:
            return program.float_type(name, value, "little")
        if kind in (b.CONST, b.VOLATILE, b.RESTRICT):
            qualifier = {
                b.CONST: drgn.Qualifiers.CONST, b.VOLATILE: drgn.Qualifiers.VOLATILE,
                b.RESTRICT: drgn.Qualifiers.RESTRICT,
            }[kind]  # fmt: skip
            inner = self._type(value, depth + 1)
            return inner.qualified(inner.qualifiers | qualifier)
        if kind in (b.TYPE_TAG, b.VAR):
            return self._type(value, depth + 1)
        if kind == b.TYPEDEF:
            return program.typedef_type(name, self._type(value, depth + 1))
        if kind == b.PTR:
            return program.pointer_type(self._type(value, depth + 1))
        if kind == b.ARRAY:
            element, _index, count = owner.word(at, 3)
            inner = self._type(element, depth + 1)
            return program.array_type(inner, count) if count else program.array_type(inner)
        if kind in (b.ENUM, b.ENUM64):
            values = [drgn.TypeEnumerator(n, v) for n, v in btf.enum_values(type_id)]
            compatible = self._integer("", value, 1 if flag else 0)
            return program.enum_type(name or None, compatible, values)
        if kind == b.FUNC_PROTO:
            return self._prototype(type_id, value, depth)
        if kind in (b.STRUCT, b.UNION):
            make = program.struct_type if kind == b.STRUCT else program.union_type
            return make(name or None, value, self._members(type_id))
        if kind == b.FWD:
            found = btf.named(name, frozenset({b.UNION if flag else b.STRUCT}))
            if found:
                return self._type(found[0], depth + 1)
            return program.union_type(name) if flag else program.struct_type(name)
        return program.void_type()

    def _integer(self, name: str, size: int, encoding: int) -> Any:
        if encoding & 4:
            return self._program.bool_type(name, size, "little")
        return self._program.int_type(name or "int", size, bool(encoding & 1), "little")

    def _members(self, type_id: int) -> list[Any]:
        drgn = self._drgn
        out = []
        for name, target, bit, width in self._btf.members(type_id):
            if width:
                made: Callable[[], Any] = _field(drgn, self, target, width)
            else:
                made = _lazily(self, target)
            out.append(drgn.TypeMember(made, name or None, bit))
        return out

    def _prototype(self, type_id: int, ret: int, depth: int) -> Any:
        params = self._btf.params(type_id)
        variadic = bool(params) and params[-1] == ("", 0)
        made = [
            self._drgn.TypeParameter(_lazily(self, kind), name or None)
            for name, kind in (params[:-1] if variadic else params)
        ]
        return self._program.function_type(self._type(ret, depth + 1), made, variadic)


def _lazily(source: BtfSource, type_id: int) -> Callable[[], Any]:
    return lambda: source._type(type_id)


def _field(drgn: Any, source: BtfSource, type_id: int, width: int) -> Callable[[], Any]:
    return lambda: drgn.Object(source._program, source._type(type_id), bit_field_size=width)
