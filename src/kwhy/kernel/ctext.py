"""Kernel C made digestible for a plain C grammar, every byte staying at its line and column.

The kernel's dialect has macros that read like declarations or loops.  Each is replaced by C of the
same length, so positions in the prepared text are positions in the file.
"""

import re
from dataclasses import dataclass

_SYSCALL = re.compile(
    rb"^(?P<macro>(?P<compat>COMPAT_)?SYSCALL(?:32)?_DEFINE(?P<n>\d)(?:_NORETURN)?)\s*\(\s*(?P<name>\w+)",
    re.M,
)
_BPF_CALL = re.compile(
    rb"^(?:static\s+)?(?P<macro>(?:NOTRACE_)?BPF_CALL_\d)\s*\(\s*(?P<name>\w+)", re.M
)
# Statement-like macros that head a block.  Indented: at column 1 such a name is being defined.
_LOOP = re.compile(
    rb"^[ \t]+(?:\}?[ \t]*else[ \t]+|do[ \t]+|\}[ \t]*)?"
    rb"(?P<name>\w*for_each\w*|scoped_guard|scoped_cond_guard|scoped_user_\w+|do_each_\w+|"
    rb"\w*for_every\w*|ns_for_each\w*|while_each_\w+)[ \t]*\(",
    re.M,
)
_ANNOTATION = re.compile(
    rb"\b(?:__init|__exit|__initdata|__exitdata|__initconst|__user|__kernel|__iomem|__percpu|__rcu|__force|"
    rb"__must_check|__always_inline|__cold|__hot|__sched|__weak|__ref|__refdata|__read_mostly|"
    rb"__maybe_unused|__always_unused|__used|__visible|__latent_entropy|__noreturn|__attribute_const__|"
    rb"__pure|__malloc|__cpuidle|__ro_after_init|__nocapture|__private|__bitwise|__packed|"
    rb"noinline_for_stack|noinline|notrace|asmlinkage|noinstr|__no_kcsan|__no_sanitize_address|"
    rb"____cacheline_aligned_in_smp|____cacheline_aligned|__cacheline_aligned_in_smp|"
    rb"__cacheline_aligned|__no_context_analysis|__lockfunc|__meminit|__net_init|__net_exit|__bpf_kfunc|__deprecated)\b"
)
_ANNOTATION_CALL = re.compile(
    rb"\b(?:__printf|__scanf|__acquires|__releases|__must_hold|__cond_acquires|__acquires_shared|"
    rb"__attribute__|__compiletime_error|__compiletime_warning|__diagnose_as|__alloc_size__|"
    rb"__releases_shared|__must_hold_shared|__counted_by|__aligned|__guarded_by|__free|__nonstring_array|"
    rb"__section|__assume_aligned|__alloc_size|__realloc_size)\s*\((?:[^()\n]|\([^()\n]*\))*\)"
)


@dataclass(frozen=True, slots=True)
class Branch:
    """One branch of an #if ... #endif: lines ``start`` to ``end`` (from 1, without the directives).

    ``group`` numbers the #if, ``index`` the branch in it; ``dead`` marks ``#if 0``.
    """

    group: int
    index: int
    start: int
    end: int
    dead: bool


@dataclass(frozen=True, slots=True)
class Prepared:
    """``code``: same length as ``text``; ``functions``: byte offset of a macro-defined function's
    declarator to (DWARF name, name as written); ``loops``: byte offset to macro name.
    """

    text: bytes
    code: bytes
    functions: dict[int, tuple[str, str]]
    loops: dict[int, str]


def prepare(text: bytes) -> Prepared:
    """Replace kernel dialect by C of equal length."""
    code = bytearray(text)
    functions: dict[int, tuple[str, str]] = {}
    for match in _SYSCALL.finditer(text):
        macro, name = match["macro"], match["name"].decode()
        dwarf = f"__do_compat_sys_{name}" if match["compat"] else f"__do_sys_{name}"
        _define(code, match.start("macro"), macro, functions, dwarf, f"{macro.decode()}({name})")
        if match["n"] == b"0":
            _blank(code, match.start("name"), match.end("name"))
    for match in _BPF_CALL.finditer(text):
        macro, name = match["macro"], match["name"].decode()
        _define(
            code, match.start("macro"), macro, functions, f"____{name}", f"{macro.decode()}({name})"
        )
    for pattern in (_ANNOTATION_CALL, _ANNOTATION):
        for match in pattern.finditer(text):
            # The name of a macro being defined stays.
            if not text[: match.start()].endswith((b"#define ", b"#define\t")):
                _blank(code, match.start(), match.end())
    loops: dict[int, str] = {}
    for match in _LOOP.finditer(text):
        name_at, name_end = match.span("name")
        close = _closing(text, match.end() - 1)
        after = text[close : close + 200].lstrip() if close else b";"
        if after[:1] in (b";", b")", b",", b"") or name_end - name_at < 5:
            continue
        code[name_at:name_end] = b"while".ljust(name_end - name_at)
        loops[name_at] = match["name"].decode()
    return Prepared(text, bytes(code), functions, loops)


_DIRECTIVE = re.compile(rb"^[ \t]*#[ \t]*(if|ifdef|ifndef|elif|elifdef|elifndef|else|endif)\b(.*)$")


def branches(code: bytes) -> tuple[list[Branch], list[tuple[int, int]]]:
    """The branches of every complete #if, and the (first, last) lines of the directives."""
    out: list[Branch] = []
    directives: list[tuple[int, int]] = []
    stack: list[tuple[int, int, int, bool]] = []
    groups = 0
    lines = code.split(b"\n")
    number = 0
    while number < len(lines):
        number += 1
        match = _DIRECTIVE.match(lines[number - 1])
        if match is None:
            continue
        first = number
        while lines[number - 1].endswith(b"\\") and number < len(lines):
            number += 1
        word = match[1]
        if word.startswith(b"if"):
            directives.append((first, number))
            dead = word == b"if" and match[2].strip() == b"0"
            stack.append((groups, 0, number + 1, dead))
            groups += 1
        elif stack:
            directives.append((first, number))
            group, index, start, dead = stack.pop()
            out.append(Branch(group, index, start, first - 1, dead))
            if word != b"endif":
                stack.append((group, index + 1, number + 1, False))
    return out, directives


def bodies(code: bytes) -> list[tuple[int, int]]:
    """(first, last) lines of functions by the kernel's style: "{" and "}" alone in column 1.

    The first line is that of the head, found above the brace.  For files in which something at the
    top confuses the grammar until the end.
    """
    lines = code.split(b"\n")
    out: list[tuple[int, int]] = []
    opened = 0
    for number, line in enumerate(lines, 1):
        if line.rstrip() == b"{":
            opened = number
        elif line.startswith(b"}") and opened:
            first = opened
            while first > 1 and not _HEAD_END.search(lines[first - 2]) and opened - first < 12:
                first -= 1
            if b"(" in b"".join(lines[first - 1 : opened]):
                out.append((first, number))
            opened = 0
    return out


_HEAD_END = re.compile(rb"^\s*$|[;}]\s*$|\*/\s*$|^#|^\s*//|\\$")


def only_lines(code: bytes, first: int, last: int) -> bytes:
    """``code`` with every other line blank."""
    lines = code.split(b"\n")
    keep = range(first, last + 1)
    return b"\n".join(x if n in keep else b" " * len(x) for n, x in enumerate(lines, 1))


def first_branches(parts: list[Branch]) -> dict[int, int]:
    """Of each #if the first branch that is not ``#if 0``: group to index."""
    out: dict[int, int] = {}
    for part in sorted(parts, key=lambda part: (part.group, part.index)):
        if not part.dead:
            out.setdefault(part.group, part.index)
    return out


def without_branches(
    code: bytes, parts: list[Branch], directives: list[tuple[int, int]], chosen: dict[int, int]
) -> bytes:
    """``code`` with its directives blanked and of each #if only the ``chosen`` branch kept."""
    lines = code.split(b"\n")
    blank = [range(first, last + 1) for first, last in directives]
    blank += [range(p.start, p.end + 1) for p in parts if chosen.get(p.group) != p.index]
    for numbers in blank:
        for number in numbers:
            lines[number - 1] = b" " * len(lines[number - 1])
    return b"\n".join(lines)


def _define(
    code: bytearray,
    at: int,
    macro: bytes,
    functions: dict[int, tuple[str, str]],
    dwarf: str,
    shown: str,
) -> None:
    """``SYSCALL_DEFINE3(`` becomes ``long SYSDEFINE3(`` of the same length: a function's head."""
    code[at : at + len(macro)] = b"long " + b"F" * (len(macro) - 5)
    functions[at + 5] = (dwarf, shown)


def _blank(code: bytearray, start: int, end: int) -> None:
    code[start:end] = re.sub(rb"[^\n]", b" ", code[start:end])


def _closing(text: bytes, at: int) -> int | None:
    """Offset behind the parenthesis that closes the one at ``at`` (within 2,000 bytes)."""
    depth = 0
    for index in range(at, min(at + 2000, len(text))):
        if text[index] == 0x28:
            depth += 1
        elif text[index] == 0x29:
            depth -= 1
            if not depth:
                return index + 1
    return None


def folded(text: str) -> str:
    """C on one line: comments out, continuation lines joined, single spaces."""
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    text = re.sub(r"//[^\n]*", " ", text)
    text = " ".join(text.replace("\\\n", " ").split())
    return re.sub(r"\s+([),;])", r"\1", re.sub(r"([(])\s+", r"\1", text))


def comment_text(raw: str) -> str:
    """A comment without its marks, lines kept, common indentation removed."""
    lines = []
    for line in raw.strip().splitlines():
        line = line.strip()
        line = re.sub(r"^/\*+ ?|^\*/|^\*(?!/) ?|^//+ ?", "", line)
        lines.append(re.sub(r"\s*\*+/$", "", line).rstrip())
    while lines and not lines[0]:
        lines.pop(0)
    while lines and not lines[-1]:
        lines.pop()
    return "\n".join(lines)
