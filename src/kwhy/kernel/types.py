"""C types as the analysis sees them, whoever knows them: BTF (our parser) or DWARF (drgn)."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class TypeRef:
    """A type: ``maker`` says who can resolve ``key`` ("vmlinux" or a module: BTF; "dwarf")."""

    maker: str
    key: int | str


@dataclass(frozen=True, slots=True)
class Prototype:
    """Parameters in order and the return type.

    ``optimised`` warns that the compiler changed the calling convention (.isra, .constprop, .part),
    or that the order is not sure: names and return type hold, the registers of the parameters may
    not.
    """

    params: tuple[tuple[str, TypeRef], ...]
    ret: TypeRef
    variadic: bool = False
    optimised: bool = False


@dataclass(frozen=True, slots=True)
class Member:
    """A field found at an offset: ``path`` such as "ctrl.pgrp" or "fd_array[3]".

    ``offset`` and ``size`` (bytes) are the field's own place in the type that was asked;
    ``bits`` is (shift, width) of a bit field counted from the lowest bit at ``offset``, else None.
    ``exact`` says that the access covers this field and nothing else.
    """

    path: str
    type: TypeRef
    offset: int
    size: int
    bits: tuple[int, int] | None = None
    exact: bool = True


class Types(Protocol):
    """One interface, two makers.  Every method answers None, [] or {} for what it does not know."""

    def named(self, name: str, module: str | None = None) -> TypeRef | None:
        """A type by C name: "struct tty_struct", "loff_t", "int", with trailing " *" pointers.

        ``module`` is looked at for what the kernel itself does not define.
        """
        ...

    def prototype(self, function: str, module: str | None = None) -> Prototype | None:
        """Of a function by symbol name (suffixes such as .isra.0 allowed)."""
        ...

    def call_type(self, type: TypeRef) -> Prototype | None:
        """Prototype behind a function type or a pointer to one (indirect calls)."""
        ...

    def member(self, type: TypeRef, byte_offset: int, size: int) -> list[Member]:
        """Fields that an access of ``size`` bytes at ``byte_offset`` touches, best first."""
        ...

    def field(self, type: TypeRef, path: str) -> Member | None:
        """A field by its path ("ctrl.pgrp"), anonymous members looked through."""
        ...

    def fields(self, type: TypeRef) -> list[Member]:
        """The direct members of a struct or union, those of anonymous ones unified with them."""
        ...

    def deref(self, type: TypeRef) -> TypeRef | None:
        """What a pointer points to, or an array's element."""
        ...

    def name(self, type: TypeRef) -> str:
        """As C spells it: "struct file *"."""
        ...

    def size(self, type: TypeRef) -> int | None:
        """In bytes."""
        ...

    def is_signed(self, type: TypeRef) -> bool:
        """A signed integer (enums by their definition)."""
        ...

    def is_pointer(self, type: TypeRef) -> bool:
        """A pointer, typedefs looked through."""
        ...

    def is_bool(self, type: TypeRef) -> bool:
        """_Bool, typedefs looked through."""
        ...

    def is_struct(self, type: TypeRef) -> bool:
        """A struct or union, typedefs looked through."""
        ...

    def is_void(self, type: TypeRef) -> bool:
        """void, qualifiers looked through."""
        ...

    def enumerators(self, type: TypeRef) -> dict[int, str]:
        """Value to name of an enum, {} for other types."""
        ...

    def percpu(self, offset: int) -> tuple[str, TypeRef] | None:
        """The per-CPU variable at a per-CPU offset: ("pcpu_hot.current_task", type)."""
        ...

    def variable(self, name: str, module: str | None = None) -> TypeRef | None:
        """Type of a global variable."""
        ...
