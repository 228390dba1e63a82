"""Waiting for any of several files: which ones, for poll(2), select(2) and epoll_wait(2)."""

from dataclasses import replace

from kwhy.diagnose.hang.claims import Claim
from kwhy.diagnose.hang.look import Look, claim
from kwhy.diagnose.hang.stacks import Frame, Stack

_MAX_FILES = 1024
_POLLFD = 8  # sizeof(struct pollfd)


def polled(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """poll(2), select(2): the descriptors that the call names."""
    base = claim(stack, frame, "poll", 0, f"sleeping in {frame.name}")
    call = look.user.arguments(stack)
    if call is not None and call[0] in ("select", "pselect6"):
        return replace(base, extra=_selected(look, stack, call[1]))
    if call is None or call[0] not in ("poll", "ppoll"):
        return base
    where, count = call[1][0], min(call[1][1], _MAX_FILES)
    words = look.user.words(stack.task, where, _POLLFD * count) if count else ()
    if words is None:
        return base
    listed = tuple(word for word in words[::2] if word < 1 << 31)
    return replace(base, extra=tuple(("descriptor", number) for number in listed))


def _selected(look: Look, stack: Stack, call: tuple[int, ...]) -> tuple[tuple[str, int], ...]:
    """The descriptors in the sets that select(2) was called with."""
    count, found = min(call[0] & 0xFFFFFFFF, _MAX_FILES), 0
    for where in call[1:4]:
        raw = look.user.read(stack.task, where, (count + 7) // 8) if where and count else None
        found |= int.from_bytes(raw or b"", "little")
    return tuple(("descriptor", number) for number in range(count) if found >> number & 1)


def watched(look: Look, stack: Stack, frame: Frame) -> Claim | None:
    """epoll_wait(2): the descriptors that were added to the set."""
    m = look.memory
    base = claim(stack, frame, "epoll", 0, f"sleeping in {frame.name}")
    call = look.user.arguments(stack)
    if call is None or not call[0].startswith("epoll"):
        return base
    file = look.ends.descriptor(stack.task, call[1][0] & 0xFFFFFFFF)
    if not file:
        return base
    here = m.value("struct file", file, "private_data")
    root = m.value("struct eventpoll", here, "rbr.rb_root.rb_node")
    found: list[int] = []
    queue = [root] if root else []
    while queue and len(found) < _MAX_FILES:
        node = queue.pop()
        item = node - m.offset("struct epitem", "rbn")
        if m.value("struct epitem", item, "ep") != here:
            break
        found.append(m.value("struct epitem", item, "ffd.fd"))
        sides = (m.value("struct rb_node", node, side) for side in ("rb_left", "rb_right"))
        queue += filter(None, sides)
    extra = tuple(("descriptor", number) for number in sorted(found))
    return replace(base, address=here, proof="the set of the descriptor", extra=extra)
