"""Symbolic values and what is known of them.

A *term* is an ``int`` (a known 64-bit value) or a tuple:

    ``("init", frame, register)``        a register's value on entry to a frame
    ``("arg", n, value)``                the n-th argument of the system call, whose value is known;
                                         for a constant passed to a frame ``n`` is (frame,
                                         register) or (frame, address, size)
    ``("ret", frame, k)``                what the frame's k-th observed callee returned
    ``("lost", frame, place, n)``        a value that cannot be followed further
    ``("mem", address, size, epoch)``    memory at a term address; ``epoch`` counts what may have
                                         changed it
    ``("add", term, constant)``          modulo 2**64
    ``("low", size, term)``              low bytes, zero-extended
    ``("sext", size, term)``             sign-extended from ``size`` bytes
    ``("bin", op, size, a, b)``, ``("neg", size, term)``, ``("not", size, term)``
    ``("join", size, low, old)``             ``old`` with its low bytes replaced
    ``("percpu", term)``                     the address of this CPU's copy of a variable

*Facts* map a term to the unsigned intervals that its value lies in, and pairs of terms to the
orders still possible between them.
"""

import functools
from typing import Any, TypeGuard

from kwhy.arch import STACK_POINTERS

Term = int | tuple[Any, ...]

MAX_DEPTH = 24
_MAX_TERMS = 1 << 20


class Sym(tuple[Any, ...]):
    """A term's tuple, made once for equal content: its hash is kept and equality is identity-fast.

    States are compared by the thousand, and terms share most of their inside.
    """

    _hash: int
    depth: int

    def __hash__(self) -> int:
        return self._hash


_made: dict[tuple[Any, ...], Sym] = {}


def sym(*items: Any) -> Sym:
    """The term with these items; what is nested deeper than ``MAX_DEPTH`` becomes a lost value."""
    found = _made.get(items)
    if found is None:
        depth = 1 + max((x.depth for x in items if type(x) is Sym), default=0)
        if depth > MAX_DEPTH:
            return sym("lost", -1, ("deep", hash(items)))
        if len(_made) > _MAX_TERMS:
            _made.clear()
        found = Sym(items)
        found._hash = hash(items)
        found.depth = depth
        _made[items] = found
    return found


Interval = tuple[int, int]
Intervals = tuple[Interval, ...]
Facts = dict[Any, Any]

ALL64 = (1 << 64) - 1


def mask(size: int) -> int:
    """The largest unsigned value of ``size`` bytes."""
    return (1 << (8 * size)) - 1


def signed(value: int, size: int) -> int:
    """``value``'s low ``size`` bytes as a signed number."""
    value &= mask(size)
    return value - (1 << (8 * size)) if value >> (8 * size - 1) else value


def width(term: Term) -> int:
    """How many low bytes of a term can be other than zero."""
    if isinstance(term, int):
        return 8
    tag = term[0]
    if tag == "low" or tag == "neg" or tag == "not":
        return int(term[1])
    if tag in ("mem", "bin"):
        return int(term[2])
    return 8


def add(term: Term, constant: int) -> Term:
    """``term + constant`` modulo 2**64."""
    if isinstance(term, int):
        return (term + constant) & ALL64
    base: Term = term
    if term[0] == "add":
        base, constant = term[1], constant + term[2]
    constant &= ALL64
    return sym("add", base, constant) if constant else base


def low(size: int, term: Term) -> Term:
    """The low ``size`` bytes of a term, zero-extended."""
    if isinstance(term, int):
        return term & mask(size)
    if size >= width(term):
        return term
    tag = term[0]
    if tag == "low":
        return low(size, term[2])
    if tag == "join" and size <= term[1]:
        return low(size, term[2])
    if tag == "sext" and size <= term[1]:
        return low(size, term[2])
    if tag == "add":
        inner = term[1]
        while isinstance(inner, tuple) and (
            (inner[0] == "low" and inner[1] >= size) or (inner[0] == "sext" and inner[1] >= size)
        ):
            inner = inner[2]
        inner = add(inner, term[2] & mask(size))
        if isinstance(inner, int):
            return inner & mask(size)
        if inner[0] == "add":
            constant = inner[2] & mask(size)
            return (
                sym("low", size, sym("add", inner[1], constant))
                if constant
                else low(size, inner[1])
            )
        return low(size, inner)
    return sym("low", size, term)


def sext(size: int, term: Term) -> Term:
    """A term's low ``size`` bytes sign-extended to 8."""
    if isinstance(term, int):
        return signed(term, size) & ALL64
    if size >= 8:
        return term
    if term[0] == "low" and term[1] >= size:
        return sext(size, term[2])
    if term[0] == "sext" and term[1] <= size:
        return term
    if width(term) < size:
        return term
    return sym("sext", size, term)


def binary(op: str, size: int, a: Term, b: Term) -> Term:
    """``a op b`` in ``size`` bytes, zero-extended."""
    if isinstance(a, int) and isinstance(b, int):
        return _fold(op, size, a, b)
    if isinstance(a, int) and op in ("add", "and", "or", "xor", "mul"):
        a, b = b, a
    if isinstance(b, int):
        if op == "add":
            return low(size, add(a, b))
        if op == "sub":
            return low(size, add(a, -b))
        b &= mask(size)
        if op in ("or", "xor", "shl", "shr", "sar") and b == 0:
            return low(size, a)
        if op == "and":
            if b == 0:
                return 0
            for part in (1, 2, 4, 8):
                if b == mask(part):
                    return low(min(part, size), a)
            if size == 8 and b > ALL64 - 4096 and _is_stack_address(a):
                # A frame that aligns its stack: offsets only ever count from the entry value,
                # which may as well be taken for aligned.
                return add(a[1], a[2] & b) if a[0] == "add" else a
            if isinstance(a, tuple) and a[0] == "bin" and a[1] == "and" and isinstance(a[4], int):
                return binary("and", size, a[3], b & a[4])
        if op == "or" and b == mask(size):
            return b
        if op == "mul" and b in (0, 1):
            return low(size, a) if b else 0
    elif op == "sub" and a == b:
        return 0
    elif op == "and" and a == b:
        return low(size, a)
    return sym("bin", op, size, low(size, a), b if isinstance(b, int) else low(size, b))


def is_stack(base: Any) -> TypeGuard[tuple[Any, ...]]:
    """Whether a base is the stack of some frame."""
    return isinstance(base, tuple) and base[0] == "init" and base[2] in STACK_POINTERS


def _is_stack_address(term: Any) -> TypeGuard[tuple[Any, ...]]:
    return is_stack(term[1] if isinstance(term, tuple) and term[0] == "add" else term)


def _fold(op: str, size: int, a: int, b: int) -> int:
    top = mask(size)
    a, b = a & top, b & top
    count = b & (63 if size == 8 else 31)
    result = {
        "add": a + b,
        "sub": a - b,
        "and": a & b,
        "or": a | b,
        "xor": a ^ b,
        "mul": a * b,
        "shl": a << count,
        "shr": a >> count,
        "sar": signed(a, size) >> count,
    }[op]
    return result & top


def negate(size: int, term: Term) -> Term:
    """``-term`` in ``size`` bytes."""
    if isinstance(term, int):
        return -term & mask(size)
    if term[0] == "neg" and term[1] == size:
        return low(size, term[2])
    return sym("neg", size, low(size, term))


def invert(size: int, term: Term) -> Term:
    """``~term`` in ``size`` bytes."""
    if isinstance(term, int):
        return ~term & mask(size)
    return sym("not", size, low(size, term))


def replaced(term: Term, old: Term, new: Term) -> Term:
    """``term`` with ``new`` wherever ``old`` stands in it, worked out as far as that goes."""
    if term == old:
        return new
    if isinstance(term, int):
        return term
    tag = term[0]
    if tag == "add":
        return add(replaced(term[1], old, new), term[2])
    if tag in ("low", "sext", "neg", "not"):
        make = {"low": low, "sext": sext, "neg": negate, "not": invert}[tag]
        return make(term[1], replaced(term[2], old, new))
    if tag == "bin":
        return binary(term[1], term[2], *(replaced(side, old, new) for side in term[3:5]))
    return term


# --- facts -----------------------------------------------------------------------------------


def meet(a: Intervals, b: Intervals) -> Intervals:
    """The values that lie in both."""
    return tuple(
        (max(x[0], y[0]), min(x[1], y[1]))
        for x in a
        for y in b
        if max(x[0], y[0]) <= min(x[1], y[1])
    )


def _rotate(intervals: Intervals, by: int, size: int) -> Intervals:
    """Intervals moved by ``by`` modulo 2**(8*size), split where they wrap."""
    top = mask(size)
    out = []
    for lo, hi in intervals:
        if hi - lo >= top:
            return ((0, top),)
        lo, hi = (lo + by) & top, (hi + by) & top
        out.extend([(lo, hi)] if lo <= hi else [(0, hi), (lo, top)])
    return tuple(sorted(out))


def wanted(op: str, value: int, size: int) -> Intervals:
    """The unsigned values x of ``size`` bytes for which ``x op value`` holds."""
    top = mask(size)
    half = 1 << (8 * size - 1)
    value &= top
    if op == "eq":
        return ((value, value),)
    if op == "ne":
        return tuple(i for i in ((0, value - 1), (value + 1, top)) if i[0] <= i[1])
    if op[0] == "u":
        span = {
            "ult": (0, value - 1),
            "ule": (0, value),
            "ugt": (value + 1, top),
            "uge": (value, top),
        }[op]
        return (span,) if span[0] <= span[1] else ()
    # A signed order is the unsigned one of values moved by half the range.
    moved = wanted("u" + op[1:], (value + half) & top, size)
    return _rotate(moved, -half, size)


def _base(term: Term) -> tuple[Term, list[tuple[str, int, int]]]:
    """The term that facts are kept for, and the steps that lead from it to ``term``."""
    steps: list[tuple[str, int, int]] = []
    while isinstance(term, tuple):
        tag = term[0]
        if tag == "add":
            steps.append(("add", term[2], 8))
            term = term[1]
        elif tag == "low" and isinstance(term[2], tuple) and term[2][0] == "add":
            steps.append(("add", term[2][2], term[1]))
            term = low(term[1], term[2][1])
        elif tag == "sext":
            inner = low(term[1], term[2])
            steps.append(("sext", term[1], 8))
            term = inner
        elif tag == "neg":
            steps.append(("neg", 0, term[1]))
            term = term[2]
        else:
            break
    return term, steps


def _forward(intervals: Intervals, steps: list[tuple[str, int, int]]) -> Intervals:
    for kind, amount, size in reversed(steps):
        if kind == "add":
            intervals = _rotate(intervals, amount, size)
        elif kind == "neg":
            intervals = _negated(intervals, size)
        else:
            half = 1 << (8 * amount - 1)
            gap = ALL64 - mask(amount)
            out: list[Interval] = []
            for lo, hi in intervals:
                if lo < half:
                    out.append((lo, min(hi, half - 1)))
                if hi >= half:
                    out.append((max(lo, half) + gap, hi + gap))
            intervals = tuple(sorted(out))
    return intervals


def _backward(intervals: Intervals, steps: list[tuple[str, int, int]]) -> Intervals:
    for kind, amount, size in steps:
        if kind == "add":
            intervals = _rotate(intervals, -amount, size)
        elif kind == "neg":
            intervals = _negated(intervals, size)
        else:
            half = 1 << (8 * amount - 1)
            gap = ALL64 - mask(amount)
            image = ((0, half - 1), (half + gap, ALL64))
            intervals = tuple(
                sorted((lo & mask(amount), hi & mask(amount)) for lo, hi in meet(intervals, image))
            )
    return intervals


def _negated(intervals: Intervals, size: int) -> Intervals:
    top = mask(size)
    out: list[Interval] = []
    for lo, hi in intervals:
        if lo == 0:
            out.append((0, 0))
            lo = 1
        if lo <= hi:
            out.append((top + 1 - hi, top + 1 - lo))
    return tuple(sorted(out))


def _whole(term: Term) -> Intervals:
    if isinstance(term, tuple) and term[0] == "bin" and term[1] == "and":
        for part in (term[3], term[4]):
            if isinstance(part, int):
                return ((0, part),)
    if not isinstance(term, int) and term[:2] == ("bin", "shr") and isinstance(term[4], int):
        return ((0, mask(term[2]) >> (term[4] & 63)),)
    return ((0, mask(width(term))),)


@functools.lru_cache(maxsize=1 << 16)
def concrete(term: Term) -> int | None:
    """The value of a term that is made of numbers and system call arguments only."""
    if isinstance(term, int):
        return term
    tag = term[0]
    if tag == "arg":
        return int(term[2])
    if tag == "add":
        inner = concrete(term[1])
        return None if inner is None else (inner + term[2]) & ALL64
    if tag in ("low", "sext", "neg", "not"):
        inner = concrete(term[2])
        if inner is None:
            return None
        if tag == "low":
            return inner & mask(term[1])
        if tag == "sext":
            return signed(inner, term[1]) & ALL64
        return (-inner if tag == "neg" else ~inner) & mask(term[1])
    if tag == "bin":
        a, b = concrete(term[3]), concrete(term[4])
        return None if a is None or b is None else _fold(term[1], term[2], a, b)
    return None


def by_argument(*terms: Term) -> bool:
    """Whether some of the terms would be other if an argument were."""
    return any(part[0] == "arg" for term in terms for part in parts(term))


def domain(term: Term, facts: Facts) -> Intervals:
    """The unsigned intervals that a term's value lies in."""
    value = concrete(term)
    if value is not None:
        return ((value, value),)
    base, steps = _base(term)
    if isinstance(base, int):
        return _forward(((base, base),), steps)
    return _forward(_kept(base, facts), steps)


def _kept(base: Term, facts: Facts) -> Intervals:
    """What the facts say of a base term, also through a wider term that is fully known."""
    spans: Intervals | None = facts.get(base)
    if spans is None and isinstance(base, tuple) and base[0] == "low":
        for wider in (8, 4, 2):
            if wider > base[1]:
                whole = facts.get(low(wider, base[2]))
                if whole is not None and len(whole) == 1 and whole[0][0] == whole[0][1]:
                    value = whole[0][0] & mask(base[1])
                    return ((value, value),)
    return spans if spans is not None else _whole(base)


def known(term: Term, facts: Facts) -> int | None:
    """A term's value where the facts leave just one."""
    value = concrete(term)
    if value is not None:
        return value
    spans = domain(term, facts)
    if len(spans) == 1 and spans[0][0] == spans[0][1]:
        return spans[0][0]
    if not isinstance(term, int) and term[:2] == ("bin", "and") and isinstance(term[4], int):
        bit: int = term[4]
        if bit & (bit - 1) == 0 and spans and spans[0][0] > 0:
            return bit
    return None


_ORDERS = {
    "eq": (0b010, 0b010),
    "ne": (0b101, 0b101),
    "ult": (0b001, 0b101),
    "ule": (0b011, 0b111),
    "ugt": (0b100, 0b101),
    "uge": (0b110, 0b111),
    "slt": (0b101, 0b001),
    "sle": (0b111, 0b011),
    "sgt": (0b101, 0b100),
    "sge": (0b111, 0b110),
}


def _mirrored(bits: int) -> int:
    return (bits & 0b010) | ((bits & 1) << 2) | (bits >> 2)


def assume(facts: Facts, op: str, a: Term, b: Term, size: int) -> Facts | None:
    """The facts after ``a op b`` was seen to hold in ``size`` bytes; None if it cannot hold."""
    a, b = low(size, a), low(size, b)
    va, vb = known(a, facts), known(b, facts)
    if va is not None and vb is None:
        a, b, va, vb = b, a, vb, va
        op = {"ult": "ugt", "ugt": "ult", "ule": "uge", "uge": "ule",
              "slt": "sgt", "sgt": "slt", "sle": "sge", "sge": "sle"}.get(op, op)  # fmt: skip
    if vb is not None:
        allowed = wanted(op, vb, size)
        if va is not None:
            return facts if meet(((va, va),), allowed) else None
        base, steps = _base(a)
        if isinstance(base, int):
            return facts if meet(_forward(((base, base),), steps), allowed) else None
        before = _kept(base, facts)
        after = meet(before, _backward(allowed, steps))
        if not after:
            return None
        if after == before:
            return facts
        new = dict(facts)
        new[base] = after
        return new
    bits = _ORDERS[op]
    if a == b:
        return facts if bits[0] & bits[1] & 0b010 else None
    key: tuple[Any, ...] = ("pair", a, b, size)
    if repr(b) < repr(a):
        key = ("pair", b, a, size)
        bits = (_mirrored(bits[0]), _mirrored(bits[1]))
    before_bits = facts.get(key, (0b111, 0b111))
    u, s = before_bits[0] & bits[0], before_bits[1] & bits[1]
    if not u or not s or ((u == 0b010) and not s & 0b010) or ((s == 0b010) and not u & 0b010):
        return None
    if (u, s) == before_bits:
        return facts
    new = dict(facts)
    new[key] = (u, s)
    return new


@functools.lru_cache(maxsize=1 << 16)
def parts(term: Term) -> frozenset[tuple[Any, ...]]:
    """A term and every term inside it but numbers."""
    out: set[tuple[Any, ...]] = set()
    todo: list[Any] = [term]
    while todo:
        item = todo.pop()
        if isinstance(item, tuple) and item not in out:
            out.add(item)
            todo.extend(x for x in item if isinstance(x, tuple))
    return frozenset(out)
