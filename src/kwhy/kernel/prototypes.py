"""Which prototype a function has, also where others have its name.

BTF knows a function by its name alone. Of several static ones it has the prototype of one, and that
one may be inlined everywhere; where a weak function is replaced it may have the weak one's. DWARF
knows where a function starts.
"""

from typing import TYPE_CHECKING

from kwhy.kernel.btftypes import BtfTypes
from kwhy.kernel.symbols import Symbol, base_name
from kwhy.kernel.types import Prototype

if TYPE_CHECKING:
    from kwhy.kernel.model import Kernel


def prototype(kernel: "Kernel", function: Symbol, sure: bool) -> Prototype | None:
    """Of the function that starts at ``function.address``.

    None also if it cannot be told which of several prototypes it has. If no other symbol has its
    name, BTF is believed, unless it has to be ``sure``: of ten thousand functions about one has
    there the prototype of another that was inlined or replaced, and asking DWARF takes 10 ms.
    """
    types, module = kernel.types, function.module
    named = _by_btf(types.btf, function) if types.btf is not None else None
    if named is not None and (module or not sure) and not _several(kernel, function):
        return named
    file = _file(kernel, function)
    place = None if module else kernel.symbols.vmlinux.relative(function.address)
    told = types.prototype_at(function, file, place) if file else None
    if told is not None:
        return named if named is not None and _names(named) == _names(told) else told
    if _several(kernel, function):
        return None
    return named if named is not None or module else types.prototype(function.name)


def _by_btf(btf: BtfTypes, function: Symbol) -> Prototype | None:
    if function.module and btf.blob(function.module) is None:
        return None  # the kernel's own of that name is another
    return btf.prototype(function.name, function.module)


def _file(kernel: "Kernel", function: Symbol) -> str | None:
    frames = kernel.frames(function.address)
    return frames[-1].file or None if frames else None


def _names(prototype: Prototype) -> set[str]:
    return {name for name, _type in prototype.params}


def _several(kernel: "Kernel", function: Symbol) -> bool:
    """Whether the name is that of several functions; copies from one header are one."""
    symbols = kernel.symbols
    table = symbols.modules.get(function.module) if function.module else symbols.vmlinux
    if table is None:
        return True
    bare = base_name(function.name)
    found = [table.symbol(index) for index in table.variants(bare)]
    if len(found) < 2:
        return False
    files = {_file(kernel, symbol) for symbol in found}
    if None not in files:
        return len(files) > 1
    return len({symbol.address for symbol in found if symbol.name == function.name}) > 1
