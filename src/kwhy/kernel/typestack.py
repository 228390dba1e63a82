"""BTF first, DWARF for what BTF leaves out: one ``Types`` for the analysis.

Where there is BTF, DWARF only answers with C spellings ("struct super_block *"), which pass through
the evidence's memory of answers and are resolved in BTF again: a saved case needs no debug info.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

from kwhy.case.diskcache import Known
from kwhy.case.evidence import JSON, Evidence
from kwhy.kernel.btftypes import BtfTypes
from kwhy.kernel.dwarftypes import DwarfTypes
from kwhy.kernel.symbols import Symbol, base_name
from kwhy.kernel.types import Member, Prototype, TypeRef

SPELLED = "c"
"""Maker of types known by their C spelling alone: pointers that BTF does not contain."""

_KNOWN = {"current_task": "struct task_struct *", "cpu_current_top_of_stack": "unsigned long"}
"""arch/x86/include/asm/current.h and processor.h, for kernels that tell the types nowhere."""


class TypeStack:
    """Implements ``Types`` over a BTF maker (may be None) and a drgn program (may be None)."""

    def __init__(
        self,
        evidence: Evidence,
        btf: BtfTypes | None,
        program: Callable[[], Any] | None = None,
        percpu_name: Callable[[int], tuple[str, int] | None] | None = None,
        known: Known | None = None,
    ) -> None:
        """``percpu_name`` gives symbol and start of the per-CPU variable around an offset.

        ``known`` keeps what DWARF said: drgn's first look-up of a name takes over a second.
        """
        self._known = known
        self._evidence, self.btf, self._program = evidence, btf, program
        self._percpu_name = percpu_name

    @cached_property
    def dwarf(self) -> DwarfTypes | None:
        """The DWARF maker, None without debug info."""
        program = self._program() if self._program else None
        return DwarfTypes(program) if program is not None else None

    def _maker(self, type: TypeRef) -> BtfTypes | DwarfTypes | None:
        if type.maker == SPELLED:
            return None
        return self.dwarf if type.maker == "dwarf" else self.btf

    def _spelled(self, text: str) -> TypeRef:
        return self.named(text) or TypeRef(SPELLED, text)

    def named(self, name: str, module: str | None = None) -> TypeRef | None:
        """By C name; a pointer to a known type is always known. ``module``: look there, too."""
        if self.btf is None:
            return self.dwarf.named(name) if self.dwarf else None
        found = self.btf.named(name, module)
        if found is None and name.rstrip().endswith("*") and self.named(name.rstrip()[:-1]):
            return TypeRef(SPELLED, name.rstrip())
        return found

    def prototype(self, function: str, module: str | None = None) -> Prototype | None:
        """Of a function, static ones and (from DWARF) those that pahole left out included."""
        if self.btf is None:
            return self.dwarf.prototype(function, module) if self.dwarf else None
        found = self.btf.prototype(function, module)
        if found is not None:
            return found
        optimised = function != base_name(function)
        key = f"prototype/{base_name(function)}"
        return self._decode(self._once(key, lambda: self._dwarf_prototype(function)), optimised)

    def prototype_at(self, function: Symbol, file: str, place: int | None) -> Prototype | None:
        """Of the function of source file ``file`` that starts at ``function.address``, by DWARF.

        ``place``: its address without KASLR, None where that may change from boot to boot.
        """
        if self.btf is None:
            return self.dwarf.prototype_at(function, file) if self.dwarf else None
        bare = base_name(function.name)

        def compute() -> JSON:
            return self._told(self.dwarf.prototype_at(function, file) if self.dwarf else None)

        if place is None:
            return self._decode(
                self._evidence.answer(f"prototype/{bare}@{function.address:x}", compute)
            )
        return self._decode(self._once(f"prototype/{bare}@{place:x}", compute))

    def _once(self, key: str, compute: Callable[[], JSON]) -> JSON:
        """An answer of DWARF, kept in the case and (if there is DWARF) on the desk's disk."""
        if self._known is None or self._program is None or self._program() is None:
            return self._evidence.answer(key, compute)
        known = self._known
        return self._evidence.answer(key, lambda: known.get(key, compute))

    def _dwarf_prototype(self, function: str) -> JSON:
        return self._told(self.dwarf.prototype(function) if self.dwarf else None)

    def _told(self, found: Prototype | None) -> JSON:
        if found is None or self.dwarf is None:
            return None
        spell = self.dwarf.name
        params: list[JSON] = [[name, spell(type)] for name, type in found.params]
        return {
            "params": params,
            "ret": spell(found.ret),
            "variadic": found.variadic,
            "optimised": found.optimised,
        }

    def _decode(self, data: JSON, optimised: bool = False) -> Prototype | None:
        if not isinstance(data, dict):
            return None
        optimised = optimised or data.get("optimised") is True
        match data:
            case {"params": list(rows), "ret": str(ret), "variadic": bool(variadic)}:
                params = []
                for row in rows:
                    match row:
                        case [str(name), str(text)]:
                            params.append((name, self._spelled(text)))
                return Prototype(tuple(params), self._spelled(ret), variadic, optimised)
        return None

    def variable(self, name: str, module: str | None = None) -> TypeRef | None:
        """Type of a global: BTF knows per-CPU ones (and all since pahole 1.27), DWARF the rest."""
        if self.btf is None:
            return self.dwarf.variable(name) if self.dwarf else None
        found = self.btf.variable(name, module)
        if found is None:
            text = self._once(f"variable/{name}", lambda: self._dwarf_variable(name))
            if isinstance(text, str):
                found = self._spelled(text)
        return found

    def _dwarf_variable(self, name: str) -> JSON:
        found = self.dwarf.variable(name) if self.dwarf else None
        return self.dwarf.name(found) if found and self.dwarf else None

    def percpu(self, offset: int) -> tuple[str, TypeRef] | None:
        """The per-CPU variable (and field) at an offset from the per-CPU base."""
        found = self.btf.percpu(offset) if self.btf else None
        place = self._percpu_name(offset) if self._percpu_name and not found else None
        if place is None:
            return found
        # Debian's 5.10 has no BTF of variables: the name by symbol, the type by DWARF, or known.
        name, start = place
        type = self.variable(name) or (self.named(_KNOWN[name]) if name in _KNOWN else None)
        if type is None:
            return None
        if offset == start and not self.is_struct(type):
            return name, type
        for member in self.member(type, offset - start, 8) if self.is_struct(type) else []:
            if member.offset == offset - start:
                return f"{name}.{member.path}", member.type
        return None

    # -- by the maker of the reference -------------------------------------------------------------

    def call_type(self, type: TypeRef) -> Prototype | None:
        """Prototype behind a function pointer."""
        maker = self._maker(type)
        return maker.call_type(type) if maker else None

    def member(self, type: TypeRef, byte_offset: int, size: int) -> list[Member]:
        """Fields that an access touches, best first."""
        maker = self._maker(type)
        return maker.member(type, byte_offset, size) if maker else []

    def field(self, type: TypeRef, path: str) -> Member | None:
        """A field by its path."""
        maker = self._maker(type)
        return maker.field(type, path) if maker else None

    def fields(self, type: TypeRef) -> list[Member]:
        """Direct members, anonymous ones unified."""
        maker = self._maker(type)
        return maker.fields(type) if maker else []

    def deref(self, type: TypeRef) -> TypeRef | None:
        """What a pointer points to, or an array's element."""
        maker = self._maker(type)
        if maker is not None:
            return maker.deref(type)
        text = str(type.key)
        return (
            self._spelled(text[:-1].rstrip())
            if text.endswith("*") and text[:-1].strip() != "void"
            else None
        )

    def name(self, type: TypeRef) -> str:
        """As C spells it."""
        maker = self._maker(type)
        return maker.name(type) if maker else str(type.key) if type.maker == SPELLED else ""

    def size(self, type: TypeRef) -> int | None:
        """In bytes."""
        maker = self._maker(type)
        return maker.size(type) if maker else 8 if self.is_pointer(type) else None

    def is_signed(self, type: TypeRef) -> bool:
        """A signed integer."""
        maker = self._maker(type)
        return maker.is_signed(type) if maker else False

    def is_pointer(self, type: TypeRef) -> bool:
        """A pointer, typedefs looked through."""
        maker = self._maker(type)
        if maker is not None:
            return maker.is_pointer(type)
        text = str(type.key)
        return type.maker == SPELLED and (text.endswith("*") or "(*" in text)

    def is_bool(self, type: TypeRef) -> bool:
        """_Bool, typedefs looked through."""
        maker = self._maker(type)
        return maker.is_bool(type) if maker else False

    def is_struct(self, type: TypeRef) -> bool:
        """A struct or union, typedefs looked through."""
        maker = self._maker(type)
        if maker is not None:
            return maker.is_struct(type)
        text = str(type.key)
        return text.startswith(("struct ", "union ")) and not self.is_pointer(type)

    def is_void(self, type: TypeRef) -> bool:
        """void."""
        maker = self._maker(type)
        return maker.is_void(type) if maker else False

    def enumerators(self, type: TypeRef) -> dict[int, str]:
        """Value to name of an enum."""
        maker = self._maker(type)
        return maker.enumerators(type) if maker else {}
