"""A loop in the words of the source: its conditions, its lines, the names of what it reads."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from kwhy.arch import Arch
from kwhy.diagnose.sites import Site, locate
from kwhy.diagnose.spin_frames import function_of
from kwhy.diagnose.spin_loop import Watched, never_taken, result_size, result_values
from kwhy.diagnose.truth import truth
from kwhy.flow.cfg import Code, Function, Segment
from kwhy.flow.explore import Decision
from kwhy.flow.state import Condition
from kwhy.kernel.model import Kernel
from kwhy.kernel.types import TypeRef
from kwhy.verdict.spin import Branch, CalleeResult, LoopLine, SourceLines

AHEAD = 4  # segments that are followed to see where a branch leads
AROUND = 3  # lines of source shown before and after the loop
MAX_LINES = 60
MAX_VALUES = 4
_GO_ON = frozenset({"while", "do", "for"})  # statements that ask before the next round


def offset(kernel: Kernel, address: int) -> str:
    """``function+0x1b`` of an address."""
    symbol = kernel.symbols.at(address)
    return f"{symbol.name}+{address - symbol.address:#x}" if symbol else f"{address:#x}"


def place(kernel: Kernel, address: int) -> str:
    """What memory at an address is called: a variable's member, as far as that is known."""
    symbol = kernel.symbols.at(address)
    if symbol is None:
        return f"*{address:#x}"
    inside = address - symbol.address
    kind = kernel.types.variable(symbol.name)
    if kind is not None and kernel.types.is_struct(kind):
        members = kernel.types.member(kind, inside, 1)
        if members:
            return f"{symbol.name}.{members[0].path}"
    return f"{symbol.name}+{inside:#x}" if inside else symbol.name


def _compared(segment: Segment) -> Condition | None:
    """What a branch compares, where that is a register or memory with a number."""
    for insn in reversed(segment.insns):
        for effect in insn.effects:
            if effect[0] == "flags":
                _, kind, size, a, b = effect
                if kind in ("cmp", "logic", "result", "test") and b[0] == "const":
                    return segment.last.condition, ("machine", a), int(b[1]), size
                return None
    return None


def _way(function: Function, start: int | None) -> list[Segment]:
    """The segments from ``start`` on, as long as there is just one way."""
    out: list[Segment] = []
    while start in function.segments and len(out) < AHEAD:
        assert start is not None
        segment = function.segments[start]
        out.append(segment)
        onward = segment.successors()
        start = onward[0] if len(onward) == 1 else None
    return out


def holds(
    kernel: Kernel, function: Function, segment: Segment, taken: bool, site: Site
) -> bool | None:
    """Whether the source condition is true when the branch of ``segment`` goes that way; None when
    that is not clear."""
    decision = Decision(
        segment.last.address, "branch", taken, _compared(segment), segment.target or 0
    )
    there, other = segment.target, segment.next
    if not taken:
        there, other = other, there
    after, instead = ([each.start for each in _way(function, way)] for way in (there, other))
    return taken if site.condition is None else truth(kernel, site, decision, after, instead)


def branches(kernel: Kernel, watched: Watched) -> list[Branch]:
    """The conditions of the loop that were asked while it was watched."""
    asked: list[tuple[Segment, Site, Branch]] = []
    for segment in watched.alive():
        if segment.kind == "branch" and segment.target is not None and segment.next is not None:
            site = locate(kernel, segment.last.address)
            found = _branch(kernel, watched, segment, site)
            asked += [(segment, site, found)] if found is not None else []
    ways: dict[object, set[bool | None]] = {}
    for _, site, found in asked:
        ways.setdefault(site.identity, set()).add(found.always)
    out: dict[tuple[object, ...], Branch] = {}
    for segment, site, found in asked:
        if {True, False} <= ways[site.identity] and site.condition is not None:
            # A macro that tests several things: what it is as a whole no jump of it tells.
            site = replace(site, condition=None)
            bare = _branch(kernel, watched, segment, site)
            found = found if bare is None else bare
        key = (site.identity, found.always)
        if key not in out or (found.leaves and not out[key].leaves):
            out[key] = found  # else another jump of the same condition
    return list(out.values())


def _branch(kernel: Kernel, watched: Watched, segment: Segment, site: Site) -> Branch | None:
    """The condition that a branch asks and how it went, None if that says nothing."""
    out_of = dict(watched.ways_out()).get(segment.start)
    if any(each.kind == "trap" for each in _way(watched.function, out_of)):
        return None  # a BUG(): nobody waits for that
    never = never_taken(watched, segment)
    always = wanted = None
    if never is not None:
        always = holds(kernel, watched.function, segment, not never, site)
        if always is None and out_of is None:
            return None
        always = always is not False
    if out_of is not None:
        jump_leaves = out_of == segment.target
        wanted = _wanted(kernel, watched.function, segment, jump_leaves, site)
        # Where neither way was counted by itself the loop, if not left, tells.
        if never == jump_leaves or (never is None and watched.stayed()):
            always = not wanted
    return Branch(
        file=site.file,
        line=site.line,
        function=site.function,
        expr=site.condition.text if site.condition else _jump(site, segment),
        always=always,
        offset=site.offset,
        leaves=out_of is not None,
        wanted=wanted,
    )


def _wanted(
    kernel: Kernel, function: Function, segment: Segment, jump_leaves: bool, site: Site
) -> bool:
    """What the source condition is when the branch of ``segment`` leaves the loop.

    Of ``a && b`` the jump of a alone does not tell, nor do the lines where a statement stands in
    that of its condition: then what is asked to go on is, and what is asked within is not.
    """
    leaving, staying = (
        holds(kernel, function, segment, way, site) for way in (jump_leaves, not jump_leaves)
    )
    if leaving is None and staying is not None:
        return not staying
    if leaving is None or leaving == staying:
        return site.condition is None or site.condition.kind not in _GO_ON
    return leaving


def _jump(site: Site, segment: Segment) -> str:
    """What a branch is called whose condition is not spelled out where it stands (in a macro)."""
    line = f", line {site.line}" if site.line else ""
    return f"the jump at {site.offset} ({segment.last.text.split()[0]}{line})"


def calls(kernel: Kernel, code: Code, arch: Arch, watched: Watched, decides: set[int]) -> list[
    CalleeResult
]:
    """What the functions that the loop calls returned; ``decides``: the calls that matter."""
    out = []
    for segment in watched.alive():
        if segment.kind != "call":
            continue
        site = segment.last.end
        name = called(code, watched, segment)
        if watched.never(site):
            continue
        type = result_type(kernel, code, segment)
        values = result_values(watched, arch, site, result_width(kernel, watched, arch, type, site))
        ret = None
        if values and not (type is not None and kernel.types.is_void(type)):
            ret = summary(values)
        out.append(
            CalleeResult(
                function=name, ret=ret, offset=offset(kernel, site), decides=site in decides
            )
        )
    return out


def called(code: Code, watched: Watched, segment: Segment) -> str:
    """The name of the function that a call segment calls."""
    if segment.target is None:
        if segment.through is not None and segment.through[0] == "reg":
            return f"*{segment.through[1]}"
        return f"*{segment.last.text.removeprefix('call ')}"
    return code.name(code.resolve(segment.target))


def result_type(kernel: Kernel, code: Code, call: Segment) -> TypeRef | None:
    """What the function returns that a call segment calls; None if that is not known."""
    found = kernel.prototype(code.resolve(call.target)) if call.target is not None else None
    return found.ret if found is not None else None


def result_width(
    kernel: Kernel, watched: Watched, arch: Arch, type: TypeRef | None, site: int
) -> int:
    """Bytes of a call's result: by its C type, else by how much of it the loop looks at."""
    size = kernel.types.size(type) if type is not None else None
    return size if size in (1, 2, 4, 8) else result_size(watched, arch, site)


def summary(values: Sequence[int]) -> str:
    """Values in words: the one, the few, or how many."""
    distinct = list(dict.fromkeys(values))
    if len(distinct) <= MAX_VALUES:
        return ", ".join(number(value) for value in distinct)
    return f"{len(distinct)} different values"


def number(value: int) -> str:
    """Small numbers in decimal, large ones in hex."""
    return str(value) if value < 65536 else f"{value:#x}"


def lines_of(kernel: Kernel, function: Function, addresses: Sequence[int]) -> Counter[int]:
    """How many of the addresses belong to each line of the function itself."""
    out: Counter[int] = Counter()
    for address in addresses:
        frames = kernel.frames(address)
        if frames and frames[-1].line:
            out[frames[-1].line] += 1
    return out


def functions(kernel: Kernel, watched: Watched) -> list[str]:
    """The functions that the loop is in: that of its head, and those that it hands over to."""
    starts = [watched.loop.head, *sorted(watched.loop.body)]
    return list(dict.fromkeys(function_of(kernel, start)[1] for start in starts))


def loop_lines(kernel: Kernel, watched: Watched) -> tuple[LoopLine, ...]:
    """The source lines of the loop, with the samples that were taken in each."""
    frames = kernel.frames(watched.loop.head)
    if not frames:
        return ()
    inside = [insn.address for segment in watched.alive() for insn in segment.insns]
    covered = lines_of(kernel, watched.function, inside)
    taken = lines_of(kernel, watched.function, watched.place.at)
    return tuple(
        LoopLine(file=frames[-1].file, line=line, samples=taken[line]) for line in sorted(covered)
    )


def excerpt(kernel: Kernel, name: str, lines: Sequence[LoopLine]) -> tuple[SourceLines, ...]:
    """The source around the loop; () without it."""
    text = kernel.source(lines[0].file) if lines else None
    parsed = kernel.parsed(lines[0].file) if lines else None
    if text is None or parsed is None:
        return ()
    function = parsed.function_at(lines[0].line)
    all_lines = text.splitlines()
    low, high = lines[0].line, lines[-1].line
    if function is not None:
        numbers = [each.line for each in lines if function.start <= each.line <= function.end]
        low, high = min(numbers), max(numbers)
        low, high = max(low - AROUND, function.start), min(high + AROUND, function.end)
    high = min(high, low + MAX_LINES, len(all_lines))
    return (SourceLines(file=lines[0].file, first=low, lines=tuple(all_lines[low - 1 : high])),)
