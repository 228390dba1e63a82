"""Values of a run as a reader wants them: numbers in full, pointers with what they lead to."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from kwhy.case.evidence import PAGE, MissingMemory
from kwhy.diagnose.words import errno_of
from kwhy.emulate.call import OutParameter
from kwhy.emulate.operations import bare
from kwhy.emulate.passing import Passed
from kwhy.emulate.scene import KernelScene
from kwhy.verdict.call import Out, Value

Place = tuple[str, int, int]
"""Memory that was made for a call: name, address, bytes."""
_LONGEST = 200
_KERNEL = 0xFF << 56
"""Unsigned words from here on are addresses of the kernel."""


def shown(
    scene: KernelScene,
    value: Any,
    is_error: Callable[[int], bool],
    places: Sequence[Place] = (),
) -> Value:
    """A drgn object as text. ``is_error`` tells which negative numbers are error numbers."""
    import drgn

    kind, name = bare(value.type_), value.type_.type_name()
    if kind.kind == drgn.TypeKind.POINTER:
        address = value.value_()
        return Value(
            value=f"{address:#x}", type=name, text=_pointer(scene, kind, address, is_error, places)
        )
    if kind.kind in (drgn.TypeKind.INT, drgn.TypeKind.BOOL):
        integer = int(value.value_())
        if drgn.sizeof(kind) == 8 and integer >= _KERNEL:
            return Value(value=f"{integer:#x}", type=name, text=_symbol(scene, integer))
        error = errno_of(integer) if integer < 0 and is_error(integer) else None
        return Value(value=str(integer), type=name, text=error)
    if kind.kind == drgn.TypeKind.ARRAY and bare(kind.type).type_name() in ("char", "signed char"):
        return Value(value=_buffer(value.to_bytes_()), type=name)
    text = value.format_(
        type_name=False, dereference=False, member_type_names=False, members_same_line=True,
        element_type_names=False, elements_same_line=True, implicit_elements=False,
    )  # fmt: skip
    return Value(value=text, type=name)


def out(
    scene: KernelScene,
    name: str,
    value: Any,
    is_error: Callable[[int], bool],
    places: Sequence[Place],
) -> Out:
    """An out-parameter as text."""
    found = shown(scene, value, is_error, places)
    return Out(
        name=name, value=found.value + (f" {found.text}" if found.text else ""), type=found.type
    )


def made_for(arguments: Sequence[Passed], outs: Sequence[OutParameter]) -> list[Place]:
    """The memory that was made for a call: out-parameters and strings, for :func:`shown`."""
    import drgn

    places = [(out.name, out.address, drgn.sizeof(out.object.type_)) for out in outs]
    known = {out.address for out in outs}
    for passed in arguments:
        if passed.text.startswith('"') and passed.value not in known:
            places.append((passed.text, passed.value, len(passed.text)))
    return places


def _pointer(
    scene: KernelScene,
    kind: Any,
    address: int,
    is_error: Callable[[int], bool],
    places: Sequence[Place],
) -> str | None:
    if not address:
        return "NULL"
    number = address - (1 << 64)
    error = errno_of(number)
    if error:
        return error if number != -1 or is_error(number) else None
    if kind.type.unqualified().type_name() in ("char", "unsigned char"):
        return _string(scene, address)
    for name, start, size in places:
        if start <= address <= start + size:
            return f"{name} + {address - start}" if address > start else name
    return _symbol(scene, address)


def _symbol(scene: KernelScene, address: int) -> str | None:
    symbol = scene.kernel.symbols.at(address)
    if symbol is None:
        return None
    offset = address - symbol.address
    return f"&{symbol.name}" + (f"+{offset:#x}" if offset else "")


def _string(scene: KernelScene, address: int) -> str | None:
    """The string at an address, as the code left it; None where there is none."""
    room = min(PAGE - address % PAGE, _LONGEST)
    try:
        data, end, _ = scene.memory.read(address, room).partition(b"\0")
    except MissingMemory:
        return None
    return quoted(data) if end or room == _LONGEST else None


def _buffer(data: bytes) -> str:
    """The strings of a buffer, those that do not begin it with their offset."""
    parts = [(m.start(), m[0]) for m in re.finditer(rb"[^\0]+", data)]
    if not parts:
        return '""'
    told = [quoted(part) if not at else f"+{at}: {quoted(part)}" for at, part in parts[:16]]
    return ", ".join(told + ["..."] * (len(parts) > 16))


def quoted(data: bytes) -> str:
    """Bytes as a C string."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
        return '"' + "".join(c if " " <= c <= "~" else f"\\x{ord(c):02x}" for c in text) + '"'
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').translate(_CONTROLS) + '"'


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127)} | {
    10: "\\n", 9: "\\t", 13: "\\r"
}  # fmt: skip
