"""The call tree of one system call, from function-tracer events.

Each event says: function `ip` was entered, and will return to `parent_ip`. The return address is
the exact call site in the caller, so the tree can be rebuilt without seeing any return: the caller
is the topmost open frame of the function around `parent_ip`; whatever was open above it has
returned by now. What makes it harder:

* functions that are not traced (noinstr, ``inline`` ones kept out of line since the kernel's
  ``inline`` means notrace, all of lib/) show up only as somebody's caller: implicit frames;
* a tail call leaves the return address of the caller's caller: the live code tells (`CodeHints`);
* interrupts, exceptions and softirqs run on top of the call, and so does the scheduler where it
  preempts the task: they become trees of their own.

The events are those of one task, so being scheduled away does not show.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from kwhy.record.formats import HARDIRQ, NMI, SOFTIRQ
from kwhy.record.model import Call, CodeHints, Kind
from kwhy.record.names import Function, Functions

_SEARCH_DEPTH = 48  # frames asked whether they call an untraced function
_CHAIN_LENGTH = 5  # untraced functions in a row that are bridged
_CHAIN_WIDTH = 300  # functions looked at for that
_FAR = 1 << 16  # code without symbols closer than this counts as one function


@dataclass(slots=True)
class Tree:
    """Roots of the call itself, roots of what interrupted it, and remarks for the evidence."""

    calls: list[Call] = field(default_factory=list)
    interrupts: list[Call] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Frame:
    call: Call
    level: int  # 0 task, 1 softirq, 2 hardirq, 3 NMI: as its own event said
    foreign: bool  # inside an interrupt tree


def context_level(flags: int) -> int:
    """0 in the task's own context, 1 in a softirq, 2 in a hard interrupt, 3 in an NMI."""
    if flags & NMI:
        return 3
    if flags & HARDIRQ:
        return 2
    return 1 if flags & SOFTIRQ else 0


class TreeBuilder:
    """Feed it the events of one window in order; then take `tree`."""

    def __init__(
        self,
        functions: Functions,
        hints: CodeHints | None = None,
        callers: Collection[int] | None = None,
    ) -> None:
        """`callers`: functions seen calling others anywhere in the recording, if known."""
        self.tree = Tree()
        self._functions = functions
        self._hints = hints
        self._callers = callers
        self._stack: list[_Frame] = []
        self._chains: dict[tuple[int, int], list[Function] | None] = {}

    def add(self, ip: int, parent_ip: int, time: int, flags: int) -> None:
        """One event: `ip` entered, to return to `parent_ip`."""
        function = self._functions.at(ip)
        caller = self._functions.caller(parent_ip)
        if caller.tracer:
            return  # what the tracer does to record an event is not part of the call
        level = context_level(flags)
        stack = self._stack
        # An event of a lower context ends everything of a higher one.
        while stack and stack[-1].level > level:
            stack.pop()
        # Tracers put the very start of their trampoline there, so no call lies before it.
        if caller.trampoline or self._functions.at(parent_ip).trampoline:
            self._note("another tracer had replaced return addresses: some call sites are unknown")
            self._place_unknown(function, time, level)
            return
        index = self._find(caller, level)
        if index is None:
            index = self._enter_untraced(caller, function, parent_ip, time, level)
        self._attach(index, function, parent_ip, time, level)

    # -- finding the caller ----------------------------------------------------------------------

    def _find(self, caller: Function, level: int) -> int | None:
        """Topmost frame of `caller` that an event of this context can belong to."""
        for index in range(len(self._stack) - 1, -1, -1):
            frame = self._stack[index]
            if _is(frame.call.function, caller) and (frame.level >= level or frame.foreign):
                return index
        return None

    def _enter_untraced(
        self, caller: Function, function: Function, site: int, time: int, level: int
    ) -> int:
        """Push frames for a caller that no event announced; returns its index."""
        stack = self._stack
        inside = bool(stack) and stack[-1].foreign
        if caller.entry:
            if caller.leaving and (root := self._interrupt_root()) is not None:
                return self._push_under(root, caller, time, level, guessed=False)
            return self._push_root(caller, time, level, "interrupt")
        if caller.switch and not self._top_calls(caller):
            # Preempted: by an interrupt's end if one is open, else by a preempt_enable().
            if inside and (root := self._interrupt_root()) is not None:
                return self._push_under(root, caller, time, level, guessed=False)
            return self._push_root(caller, time, level, "interrupt")
        if level and not inside:
            # An interrupt whose beginning we did not see.
            return self._push_root(caller, time, level, "interrupt")
        if not stack:
            return self._push_root(caller, time, level, "implicit")
        owner, between, guessed = self._owner(caller, level)
        begins = inside and not level and not self.tree.calls
        if owner is None or (guessed and begins):
            # An interrupt that came before the call's first function is over when that is entered.
            return self._push_root(caller, time, level, "implicit")
        for untraced in between:
            owner = self._push_under(owner, untraced, time, level, guessed=False)
        return self._push_under(owner, caller, time, level, guessed)

    def _top_calls(self, function: Function) -> bool:
        """Whether the code of the innermost open frame calls `function` itself."""
        if not self._stack or self._hints is None:
            return False
        return function.start in (self._hints.callees(self._stack[-1].call.function) or ())

    def _owner(
        self, caller: Function, level: int
    ) -> tuple[int | None, list[Function], bool]:
        """Who called an untraced function: (frame, untraced functions between, is it a guess)."""
        usable = [
            i
            for i in range(len(self._stack) - 1, -1, -1)
            if not level or self._stack[i].foreign or self._stack[i].level >= level
        ][:_SEARCH_DEPTH]
        hints = self._hints
        if hints is not None:
            for i in usable:
                callees = hints.callees(self._stack[i].call.function) or ()
                if any(c in callees for c in (caller.start, *caller.others)):
                    return i, [], False
            for i in usable:
                chain = self._untraced_chain(hints, self._stack[i].call.function, caller)
                if chain is not None:
                    return i, chain, False
        if not usable:
            return None, [], True
        for i in usable:
            if self._callers is None or self._stack[i].call.function in self._callers:
                return i, [], True
        return usable[0], [], True

    def _untraced_chain(
        self, hints: CodeHints, start: int, caller: Function
    ) -> list[Function] | None:
        """The shortest chain of untraced functions by which `start` calls `caller`, if any."""
        key = (start, caller.start)
        if key in self._chains:
            return self._chains[key]
        goals = (caller.start, *caller.others)
        came_from: dict[int, int] = {start: 0}
        edge = [start]
        found: list[Function] | None = None
        for _ in range(_CHAIN_LENGTH):
            following: list[int] = []
            for function in edge:
                for middle in sorted(hints.callees(function) or ()):
                    if middle in came_from or hints.traceable(middle) is not False:
                        continue
                    came_from[middle] = function
                    following.append(middle)
                    if found is None and any(g in (hints.callees(middle) or ()) for g in goals):
                        found = [self._functions.at(middle)]
                        while came_from[middle] != start:
                            middle = came_from[middle]
                            found.insert(0, self._functions.at(middle))
                        break
                if found is not None or len(came_from) > _CHAIN_WIDTH:
                    break
            if found is not None or len(came_from) > _CHAIN_WIDTH:
                break
            edge = following
        self._chains[key] = found
        return found

    def _interrupt_root(self) -> int | None:
        """Index of the innermost interrupt's root frame, if one is open."""
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index].call.kind == "interrupt":
                return index
        return None

    # -- changing the stack ----------------------------------------------------------------------

    def _push_root(self, function: Function, time: int, level: int, kind: Kind) -> int:
        call = Call(function.start, None, time, [], kind)
        if kind == "interrupt":
            self.tree.interrupts.append(call)
        else:
            self._stack.clear()
            self.tree.calls.append(call)
        self._stack.append(_Frame(call, level, kind == "interrupt"))
        return len(self._stack) - 1

    def _push_under(
        self, owner: int, function: Function, time: int, level: int, guessed: bool
    ) -> int:
        del self._stack[owner + 1 :]
        call = Call(function.start, None, time, [], "implicit", guessed=guessed)
        return self._push(call, level, function.softirq)

    def _push(self, call: Call, level: int, softirq: bool) -> int:
        top = self._stack[-1]
        foreign = top.foreign
        if softirq and not foreign:
            call.kind = "interrupt"
            self.tree.interrupts.append(call)
            foreign = True
        else:
            top.call.children.append(call)
        self._stack.append(_Frame(call, level, foreign))
        return len(self._stack) - 1

    def _attach(self, index: int, function: Function, site: int, time: int, level: int) -> None:
        """`function` was entered with return address `site`, which lies in frame `index`."""
        owner, tail, missing = self._tail_owner(index, function, site)
        if missing is not None:
            del self._stack[index + 1 :]
            self._push(Call(missing.start, site, time, [], "implicit"), level, missing.softirq)
        else:
            del self._stack[owner + 1 :]
        call = Call(function.start, None if tail else site, time, tail=tail)
        self._push(call, level, function.softirq)

    def _tail_owner(
        self, index: int, function: Function, site: int
    ) -> tuple[int, bool, Function | None]:
        """Who really entered `function`: (frame, by a tail call, untraced function between).

        The return address is in frame `index`; if the call instruction there names another
        function, that one jumped on.
        """
        hints = self._hints
        if hints is None:
            return index, False, None
        stack = self._stack
        target = hints.direct_target(site)
        called = self._functions.at(target) if target is not None else None
        if called is not None and called.thunk:
            called = None
        if called is not None and _is(function.start, called):
            return index, False, None
        above = stack[index + 1].call if index + 1 < len(stack) else None
        if (
            called is not None
            and above is not None
            and (above.kind, above.site) == ("implicit", None)
            and _is(above.function, called)
        ):
            above.site = site  # an untraced function shows only now from where it was called
        # The frames that were entered with the same return address, first to last.
        last = index
        if index + 1 < len(stack) and stack[index + 1].call.site == site:
            last = index + 1
            while last + 1 < len(stack) and stack[last + 1].call.tail:
                last += 1
        if called is None:
            # An indirect call: the same site again is a loop, unless the code says otherwise.
            for i in range(last, index, -1):
                if function.start in (hints.callees(stack[i].call.function) or ()):
                    return i, True, None
            if last > index and hints.repeats(stack[index].call.function, site) is False:
                return last, True, None
            return index, False, None
        if last > index and _is(stack[index + 1].call.function, called):
            for i in range(last, index, -1):
                if function.start in (hints.callees(stack[i].call.function) or ()):
                    return i, True, None
            return last, True, None
        return index, True, called

    def _place_unknown(self, function: Function, time: int, level: int) -> None:
        """The return address was replaced by a tracer: ask the code who calls `function`."""
        owner: int | None = None
        if self._stack:
            owner, _, _ = self._owner(function, level)
        if owner is None:
            index = self._push_root(function, time, level, "implicit")
            self._stack[index].call.kind = "traced"
            return
        index = self._push_under(owner, function, time, level, guessed=True)
        if self._stack[index].call.kind == "implicit":
            self._stack[index].call.kind = "traced"

    def _note(self, text: str) -> None:
        if text not in self.tree.notes:
            self.tree.notes.append(text)


def _is(start: int, function: Function) -> bool:
    """Whether a frame of the function at `start` is one of `function`."""
    if start == function.start or start in function.others:
        return True
    return not function.name and 0 < abs(start - function.start) < _FAR


def build_tree(
    events: Iterable[tuple[int, int, int, int]],
    functions: Functions,
    hints: CodeHints | None = None,
    callers: Collection[int] | None = None,
) -> Tree:
    """The tree of (ip, parent_ip, time, flags) events of one window, in order of time."""
    builder = TreeBuilder(functions, hints, callers)
    for ip, parent_ip, time, flags in events:
        builder.add(ip, parent_ip, time, flags)
    return builder.tree
