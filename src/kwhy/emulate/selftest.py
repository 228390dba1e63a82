"""Questions whose answers are known otherwise. What answers one of them wrongly is not trusted.

They are asked whenever a kernel is opened for calls: a task by its number, a symbol by its name, an
element of a list, the first node of a red-black tree, a square root. Where a kernel has no such
function or object, or a case does not hold its memory, the question is left out.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kwhy.arch import x86_64_emulation as arch
from kwhy.case.evidence import MissingMemory
from kwhy.errors import KwhyError

if TYPE_CHECKING:
    from kwhy.emulate.call import Caller

MAX_BLOCKS = 200_000
_MAX_WALK = 64
_POSITION = 2
_SQUARE, _ROOT = 998_001, 999


class SelfTestFailed(KwhyError):
    """The machine gave a wrong answer to a question with a known one: it cannot be trusted here."""


def check(caller: "Caller") -> None:
    """Ask. Raises SelfTestFailed when an answer is not the known one."""
    for ask in (_task, _name, _element, _first, _root):
        try:
            asked = ask(caller)
        except MissingMemory:
            continue
        if asked is not None and asked[1] != asked[2]:
            question, got, known = asked
            raise SelfTestFailed(
                f"the self-test failed: {question} gave {_text(got)}, not {_text(known)}; "
                "what runs here cannot be trusted"
            )


_Asked = tuple[str, int | None, int]
"""The question, what the machine said (None: it did not come to an end), what is right."""


def _task(caller: "Caller") -> _Asked | None:
    """Process 1 exists on every Linux; its pid field has to say 1."""
    types = caller.kernel.types
    task = types.named("struct task_struct")
    field = types.field(task, "pid") if task else None
    if field is None:
        return None
    found = caller.find_task(1) + field.offset
    number = int.from_bytes(caller.kernel.evidence.read(found, 4), "little")
    return "the pid of process 1", number, 1


def _name(caller: "Caller") -> _Asked | None:
    symbols = caller.kernel.symbols
    # Before 6.2 every name is decompressed until one fits (60443c88f3a8): that takes too long.
    known = symbols.address("int_sqrt")
    if known is None or symbols.address("kallsyms_seqs_of_names") is None:
        return None
    got = _call(caller, "kallsyms_lookup_name", [b"int_sqrt\0"])
    return None if got is None else ("kallsyms_lookup_name(\"int_sqrt\")", got[0], known)


def _element(caller: "Caller") -> _Asked | None:
    head = caller.kernel.symbols.address("super_blocks")
    if head is None:
        return None
    node = head
    for _ in range(_POSITION + 1):
        node = _word(caller, node)
        if node == head:
            return None
    got = _call(caller, "seq_list_start", [head, _POSITION])
    return None if got is None else (f"element {_POSITION} of super_blocks", got[0], node)


def _first(caller: "Caller") -> _Asked | None:
    """The keys of the kernel; there is one at least as soon as somebody has logged in."""
    types, root = caller.kernel.types, caller.kernel.symbols.address("key_serial_tree")
    kind = types.named("struct rb_node")
    left = types.field(kind, "rb_left") if kind else None
    if root is None or left is None:
        return None
    node = _word(caller, root)
    for _ in range(_MAX_WALK):
        below = _word(caller, node + left.offset) if node else 0
        if not below:
            break
        node = below
    else:
        return None
    got = _call(caller, "rb_first", [root])
    return None if got is None else ("rb_first(&key_serial_tree)", got[0], node)


def _root(caller: "Caller") -> _Asked | None:
    got = _call(caller, "int_sqrt", [_SQUARE])
    return None if got is None else (f"int_sqrt({_SQUARE})", got[0], _ROOT)


def _call(
    caller: "Caller", function: str, arguments: Sequence[int | bytes]
) -> tuple[int | None] | None:
    """What a function returns, (None,) if it does not; None where it, or its memory, is not."""
    entry = caller.kernel.symbols.address(function)
    if entry is None:
        return None
    scene = caller.scene()
    values = [scene.allocate(a) if isinstance(a, bytes) else a for a in arguments]
    end = scene.enter(entry, values, MAX_BLOCKS)
    if end.kind == "fault":
        return None
    return (scene.machine.get(arch.RESULT) if end.kind == "returned" else None,)


def _word(caller: "Caller", address: int) -> int:
    return int.from_bytes(caller.kernel.evidence.read(address, 8), "little")


def _text(value: int | None) -> str:
    if value is None:
        return "no answer"
    return str(value) if abs(value) < 1 << 20 else f"{value:#x}"
