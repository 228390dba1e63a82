"""x86-64: registers, calling convention, system-call ABI and the decoder to the neutral form.

Sources: System V AMD64 ABI; Intel SDM volume 2; arch/x86/include/asm/ptrace.h for ``pt_regs``.
"""

import functools
import re

import capstone
from capstone import x86_const as x86

from kwhy.arch import Arch, DwarfRegisters
from kwhy.arch.x86_64_paging import levels, walk
from kwhy.arch.x86_64_syscalls import SYSCALLS
from kwhy.flow.ir import Effect, Expr, Insn

_OLD = ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")
REGISTERS = tuple(f"r{name}" for name in (*_OLD, *range(8, 16)))
_SUB: dict[str, tuple[str, int, int]] = {}
for _r in ("ax", "bx", "cx", "dx"):
    _SUB |= {
        "r" + _r: ("r" + _r, 8, 0),
        "e" + _r: ("r" + _r, 4, 0),
        _r: ("r" + _r, 2, 0),
        _r[0] + "l": ("r" + _r, 1, 0),
        _r[0] + "h": ("r" + _r, 1, 8),
    }
for _r in ("si", "di", "bp", "sp"):
    _SUB |= {
        "r" + _r: ("r" + _r, 8, 0),
        "e" + _r: ("r" + _r, 4, 0),
        _r: ("r" + _r, 2, 0),
        _r + "l": ("r" + _r, 1, 0),
    }
for _n in range(8, 16):
    _r = f"r{_n}"
    _SUB |= {_r: (_r, 8, 0), _r + "d": (_r, 4, 0), _r + "w": (_r, 2, 0), _r + "b": (_r, 1, 0)}

_CC = {
    "e": "eq", "ne": "ne", "b": "ult", "ae": "uge", "be": "ule", "a": "ugt",
    "l": "slt", "ge": "sge", "le": "sle", "g": "sgt", "s": "neg", "ns": "pos",
    "p": "parity", "np": "noparity", "o": "overflow", "no": "nooverflow",
}  # fmt: skip

_CF, _PF, _ZF, _SF, _OF = 1 << 0, 1 << 2, 1 << 6, 1 << 7, 1 << 11
_UNKNOWN: Expr = ("unknown",)
_MASK64 = (1 << 64) - 1


def condition_holds(condition: str, flags: int) -> bool | None:
    """Whether a condition is true of a value of RFLAGS (Intel SDM vol. 1, 3.4.3)."""
    cf, pf, zf = bool(flags & _CF), bool(flags & _PF), bool(flags & _ZF)
    sf, of = bool(flags & _SF), bool(flags & _OF)
    return {
        "eq": zf, "ne": not zf, "ult": cf, "uge": not cf, "ule": cf or zf,
        "ugt": not (cf or zf), "slt": sf != of, "sge": sf == of,
        "sle": zf or sf != of, "sgt": not zf and sf == of, "neg": sf, "pos": not sf,
        "parity": pf, "noparity": not pf, "overflow": of, "nooverflow": not of,
    }.get(condition)  # fmt: skip


def flags_for(condition: str, holds: bool) -> int | None:
    """A value of RFLAGS of which a condition is true, or is not; None when there is none."""
    values = (0, _CF, _PF, _ZF, _SF, _OF)
    return next((flags for flags in values if condition_holds(condition, flags) == holds), None)


def trace_site(code: bytes) -> int | None:
    """Offset of the function tracer's patch site in a function's first bytes, None if it has none.

    ``-mfentry -mrecord-mcount`` leaves a five-byte nop at the start, or behind ``endbr64`` (or the
    four-byte nop that replaces it where no indirect call can come, commit ccace936eec7). While
    something traces it is a call, and a breakpoint while it is changed. A call may also be the
    function's own (see :func:`is_tracer`); a jump always is: probes there go through the tracer
    (CONFIG_KPROBES_ON_FTRACE) and are never made jumps.
    """
    for at in (0, 4):
        site = code[at : at + 5]
        if len(site) < 5:
            return None
        if site in _NOPS:
            return at
        if at == 4 and site[:1] in (b"\xe8", b"\xcc"):
            return at if code[:4] in _LANDING else None
        if at == 0 and site[:1] in (b"\xe8", b"\xcc"):
            return 0
    return None


# arch/x86/include/asm/nops.h: since 5.13 (a89dfde3dc3c) always the first; before, the kernel chose
# by processor: P6_NOP5, K8_NOP5 and GENERIC_NOP5.
_NOPS = (b"\x0f\x1f\x44\x00\x00", b"\x66\x66\x66\x66\x90", b"\x3e\x8d\x74\x26\x00")
_LANDING = (b"\xf3\x0f\x1e\xfa", b"\x66\x0f\x1f\x00", b"\x0f\x1f\x40\xd6", b"\x0f\x1f\x40\x00")


def is_tracer(name: str) -> bool:
    """Whether a call at the patch site goes to the function tracer (arch/x86/kernel/ftrace_64.S,
    its trampolines), or to a program that is attached to the function in its place."""
    return _TRACER.match(name) is not None


_TRACER = re.compile(r"__fentry__$|ftrace_(regs_)?caller|ftrace_trampoline|bpf_trampoline_")


def is_return_thunk(name: str) -> bool:
    """Whether a jump to this symbol returns from the function (arch/x86/lib/retpoline.S)."""
    return name.endswith("return_thunk")


def indirect_thunk(name: str) -> str | None:
    """The register that a retpoline-like thunk jumps through, None if ``name`` is no such thunk."""
    if "indirect" not in name or "thunk" not in name:
        return None
    register = name.rsplit("_", 1)[1]
    return register if register in REGISTERS else ""


def is_interrupt_entry(name: str) -> bool:
    """Whether this symbol is an interrupt's way in (arch/x86/include/asm/idtentry.h)."""
    return name.startswith(("asm_sysvec_", "asm_common_interrupt", "asm_exc_nmi"))


_md = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
_md.detail = True


@functools.cache
def _register(insn_reg: int) -> tuple[str, int, int] | None:
    return _SUB.get(_md.reg_name(insn_reg) or "")


def _address(insn: capstone.CsInsn, op: capstone.x86.X86Op) -> Expr:
    mem = op.mem
    if mem.base == x86.X86_REG_RIP:
        expr: Expr = ("const", (insn.address + insn.size + mem.disp) & _MASK64)
    else:
        base = _register(mem.base) if mem.base else None
        expr = ("reg", base[0], 8) if base else ("const", 0)
        if mem.index:
            index = _register(mem.index)
            part: Expr = ("reg", index[0], 8) if index else _UNKNOWN
            if mem.scale != 1:
                part = ("bin", "mul", 8, part, ("const", mem.scale))
            expr = part if expr == ("const", 0) else ("bin", "add", 8, expr, part)
        if mem.disp:
            expr = (
                ("const", mem.disp & _MASK64)
                if expr == ("const", 0)
                else ("bin", "add", 8, expr, ("const", mem.disp & _MASK64))
            )
    if mem.segment == x86.X86_REG_GS:
        return ("percpu", expr)
    return expr


def _read(insn: capstone.CsInsn, op: capstone.x86.X86Op) -> Expr:
    if op.type == x86.X86_OP_IMM:
        return ("const", op.imm & ((1 << (8 * min(op.size, 8))) - 1) if op.size else op.imm)
    if op.type == x86.X86_OP_REG:
        reg = _register(op.reg)
        if reg is None:
            return _UNKNOWN
        name, size, shift = reg
        if shift:
            return (
                "bin",
                "and",
                8,
                ("bin", "shr", 8, ("reg", name, 8), ("const", 8)),
                ("const", 255),
            )
        return ("reg", name, size)
    return ("load", _address(insn, op), op.size)


def _write(insn: capstone.CsInsn, op: capstone.x86.X86Op, value: Expr) -> Effect:
    if op.type == x86.X86_OP_REG:
        reg = _register(op.reg)
        if reg is None:
            return ("forget", ())
        name, size, shift = reg
        return ("set", name, 8, _UNKNOWN) if shift else ("set", name, size, value)
    return ("store", _address(insn, op), op.size, value)


_BINARY = {"add": "add", "sub": "sub", "and": "and", "or": "or", "xor": "xor"}
_SHIFT = {"shl": "shl", "sal": "shl", "shr": "shr", "sar": "sar"}


def _arith(insn: capstone.CsInsn, m: str) -> tuple[tuple[Effect, ...], tuple[Effect, ...], str]:
    """Effects of a non-control instruction: (effects, otherwise, condition of a select)."""
    ops = insn.operands
    n = len(ops)
    if m in ("mov", "movabs") and n == 2:
        return (_write(insn, ops[0], _read(insn, ops[1])),), (), ""
    if m == "movzx":
        return (_write(insn, ops[0], _read(insn, ops[1])),), (), ""
    if m in ("movsx", "movsxd"):
        return (_write(insn, ops[0], ("sext", ops[1].size, _read(insn, ops[1]))),), (), ""
    if m == "lea":
        return (_write(insn, ops[0], _address(insn, ops[1])),), (), ""
    if m == "cdqe":
        return (("set", "rax", 8, ("sext", 4, ("reg", "rax", 4))),), (), ""
    if m == "cwde":
        return (("set", "rax", 4, ("sext", 2, ("reg", "rax", 2))),), (), ""
    if m in ("cdq", "cqo"):
        return (("set", "rdx", 8, _UNKNOWN),), (), ""
    if m == "push":
        rsp: Expr = ("reg", "rsp", 8)
        down: Expr = ("bin", "sub", 8, rsp, ("const", 8))
        value: Expr = _read(insn, ops[0])
        if ops[0].type == x86.X86_OP_IMM:
            value = ("const", ops[0].imm & _MASK64)
        return (("store", down, 8, value), ("set", "rsp", 8, down)), (), ""
    if m == "pop":
        rsp = ("reg", "rsp", 8)
        return (
            (
                _write(insn, ops[0], ("load", rsp, 8)),
                ("set", "rsp", 8, ("bin", "add", 8, rsp, ("const", 8))),
            ),
            (),
            "",
        )
    if m == "leave":
        return (
            (
                ("set", "rsp", 8, ("bin", "add", 8, ("reg", "rbp", 8), ("const", 8))),
                ("set", "rbp", 8, ("load", ("bin", "sub", 8, ("reg", "rsp", 8), ("const", 8)), 8)),
            ),
            (),
            "",
        )
    if m in ("pushfq", "pushf"):
        down = ("bin", "sub", 8, ("reg", "rsp", 8), ("const", 8))
        return (("store", down, 8, _UNKNOWN), ("set", "rsp", 8, down)), (), ""
    if m in ("popfq", "popf"):
        return (
            (
                ("set", "rsp", 8, ("bin", "add", 8, ("reg", "rsp", 8), ("const", 8))),
                ("flags", "unknown", 8, _UNKNOWN, _UNKNOWN),
            ),
            (),
            "",
        )
    if m in _BINARY and n == 2:
        size = ops[0].size
        a, b = _read(insn, ops[0]), _read(insn, ops[1])
        same = ops[0].type == ops[1].type == x86.X86_OP_REG and ops[0].reg == ops[1].reg
        if m in ("xor", "sub") and same:
            value = ("const", 0)
        else:
            value = ("bin", _BINARY[m], size, a, b)
        if m == "sub":
            flags: Effect = ("flags", "cmp", size, a, b)
        elif m == "add":
            flags = ("flags", "add", size, a, b)
        else:
            flags = ("flags", "logic", size, value, ("const", 0))
        return (flags, _write(insn, ops[0], value)), (), ""
    if m in ("cmp", "test"):
        size = max(ops[0].size, 1)
        a, b = _read(insn, ops[0]), _read(insn, ops[1])
        if m == "cmp":
            return (("flags", "cmp", size, a, b),), (), ""
        both = a if a == b else ("bin", "and", size, a, b)
        return (("flags", "logic", size, both, ("const", 0)),), (), ""
    if m in ("inc", "dec"):
        size = ops[0].size
        value = ("bin", "add" if m == "inc" else "sub", size, _read(insn, ops[0]), ("const", 1))
        return (("flags", "result", size, value, ("const", 0)), _write(insn, ops[0], value)), (), ""
    if m == "neg":
        size = ops[0].size
        a = _read(insn, ops[0])
        value = ("un", "neg", size, a)
        return (("flags", "cmp", size, ("const", 0), a), _write(insn, ops[0], value)), (), ""
    if m == "not":
        return (_write(insn, ops[0], ("un", "not", ops[0].size, _read(insn, ops[0]))),), (), ""
    if m in _SHIFT and n == 2:
        size = ops[0].size
        value = ("bin", _SHIFT[m], size, _read(insn, ops[0]), _read(insn, ops[1]))
        return (("flags", "result", size, value, ("const", 0)), _write(insn, ops[0], value)), (), ""
    if m == "imul" and n == 2:
        size = ops[0].size
        value = ("bin", "mul", size, _read(insn, ops[0]), _read(insn, ops[1]))
        return (_write(insn, ops[0], value), _no_flags()), (), ""
    if m == "imul" and n == 3:
        size = ops[0].size
        value = ("bin", "mul", size, _read(insn, ops[1]), _read(insn, ops[2]))
        return (_write(insn, ops[0], value), _no_flags()), (), ""
    if m == "bt" and n == 2:
        size = ops[0].size
        a, b = _read(insn, ops[0]), _read(insn, ops[1])
        if ops[0].type == x86.X86_OP_MEM and ops[1].type != x86.X86_OP_IMM:
            # The bit may lie in another word than the one that is addressed.
            return (_no_flags(), ("bittest", size, _address(insn, ops[0]), b)), (), ""
        return (("flags", "bit", size, a, b),), (), ""
    if m in ("btr", "bts", "btc") and n == 2:
        size = ops[0].size
        a, b = _read(insn, ops[0]), _read(insn, ops[1])
        if ops[0].type == x86.X86_OP_MEM and ops[1].type != x86.X86_OP_IMM:
            return (_no_flags(), ("store", _address(insn, ops[0]), 8, _UNKNOWN)), (), ""
        one: Expr = ("bin", "shl", size, ("const", 1), b)
        value = {
            "btr": ("bin", "and", size, a, ("un", "not", size, one)),
            "bts": ("bin", "or", size, a, one),
            "btc": ("bin", "xor", size, a, one),
        }[m]
        return (("flags", "bit", size, a, b), _write(insn, ops[0], value)), (), ""
    if m == "xchg" and n == 2:
        a, b = _read(insn, ops[0]), _read(insn, ops[1])
        if ops[0].type == x86.X86_OP_MEM and ops[1].type == x86.X86_OP_REG:
            reg = _register(ops[1].reg)
            if reg and not reg[2]:
                # The register must take the old memory before the store replaces it.
                return (("swap", _address(insn, ops[0]), ops[0].size, reg[0]),), (), ""
        if ops[0].type == ops[1].type == x86.X86_OP_REG and ops[0].reg == ops[1].reg:
            return (), (), ""
        return (_write(insn, ops[0], _UNKNOWN), _write(insn, ops[1], _UNKNOWN)), (), ""
    if m.startswith("cmov"):
        cc = _CC.get(m[4:])
        size = ops[0].size
        old = _read(insn, ops[0])
        if cc is None:
            return (_write(insn, ops[0], _UNKNOWN),), (), ""
        return (
            (_write(insn, ops[0], _read(insn, ops[1])),),
            (_write(insn, ops[0], old),) if size == 4 else (),
            cc,
        )
    if m.startswith("set") and n == 1 and m[3:] in _CC:
        return (
            (_write(insn, ops[0], ("const", 1)),),
            (_write(insn, ops[0], ("const", 0)),),
            _CC[m[3:]],
        )
    if m in ("sbb", "adc") and n == 2:
        size = ops[0].size
        a, b = _read(insn, ops[0]), _read(insn, ops[1])
        same = ops[0].type == ops[1].type == x86.X86_OP_REG and ops[0].reg == ops[1].reg
        if m == "sbb" and same:
            without: Expr = ("const", 0)
        else:
            without = ("bin", "sub" if m == "sbb" else "add", size, a, b)
        carried: Expr = ("bin", "sub" if m == "sbb" else "add", size, without, ("const", 1))
        return (
            (("flags", "result", size, carried, ("const", 0)), _write(insn, ops[0], carried)),
            (("flags", "result", size, without, ("const", 0)), _write(insn, ops[0], without)),
            "ult",
        )
    if m in ("cli", "sti", "stac", "clac", "lfence", "mfence", "sfence", "pause", "cld", "std",
             "swapgs", "verw", "prefetchw", "prefetcht0", "prefetchnta", "clflush", "endbr64",
             "wait", "fwait"):  # fmt: skip
        return (), (), ""
    return _generic(insn), (), ""


def _no_flags() -> Effect:
    return ("flags", "unknown", 8, _UNKNOWN, _UNKNOWN)


def _generic(insn: capstone.CsInsn) -> tuple[Effect, ...]:
    """Forget what an instruction without a model may write: registers, flags and memory."""
    _, written = insn.regs_access()
    names = set()
    for reg in written:
        sub = _register(reg)
        if sub:
            names.add(sub[0])
    effects: list[Effect] = []
    if names:
        effects.append(("forget", tuple(sorted(names))))
    for op in insn.operands:
        if op.type == x86.X86_OP_MEM and op.access & capstone.CS_AC_WRITE:
            effects.append(("store", _address(insn, op), op.size, _UNKNOWN))
    if insn.eflags:
        effects.append(_no_flags())
    return tuple(effects)


_UNITS = {"b": 1, "w": 2, "d": 4, "q": 8}


def _string(kind: str, unit: int, repeated: bool) -> tuple[Effect, ...]:
    """``rep movs`` and ``rep stos``; the kernel runs with the direction flag clear."""
    rdi, rsi, rcx = (("reg", name, 8) for name in ("rdi", "rsi", "rcx"))
    count: Expr = rcx if repeated else ("const", 1)
    length: Expr = ("bin", "mul", 8, count, ("const", unit))
    onward: list[Effect] = [("set", "rdi", 8, ("bin", "add", 8, rdi, length))]
    if kind == "movs":
        moved: Effect = ("copy", rdi, rsi, count, unit)
        onward.append(("set", "rsi", 8, ("bin", "add", 8, rsi, length)))
    else:
        moved = ("fill", rdi, ("reg", "rax", unit), count, unit)
    if repeated:
        onward.append(("set", "rcx", 8, ("const", 0)))
    return (moved, *onward)


def decode(code: bytes, address: int) -> list[Insn]:
    """Decode straight-line code until it ends, becomes undecodable or the bytes run out.

    Decoding stops after the first instruction that never goes on to the next one.
    """
    out: list[Insn] = []
    at = 0
    while at < len(code):
        begun = at
        for insn in _md.disasm(code[at : at + _WINDOW], address + at):
            item = _lift(insn)
            out.append(item)
            at += item.size
            if item.kind in ("jump", "return", "stop"):
                return out
        if at == begun:
            break
    return out


def reads(code: bytes, address: int) -> set[str]:
    """The registers that the instruction at the start of ``code`` reads."""
    out: set[str] = set()
    for insn in _md.disasm(code, address, 1):
        for reg in insn.regs_access()[0]:
            sub = _register(reg)
            if sub:
                out.add(sub[0])
    return out - {"rsp"}


_WINDOW = 96  # bytes: capstone decodes all it is given before it hands out the first instruction


def _lift(insn: capstone.CsInsn) -> Insn:
    m = insn.mnemonic
    words = m.split()
    m = words[-1]
    text = f"{insn.mnemonic} {insn.op_str}".strip()
    item = Insn(insn.address, insn.size, text)
    ops = insn.operands
    if m == "ret" or m == "retf":
        item.kind = "return"
    elif m == "jmp":
        item.kind = "jump"
        _aim(item, insn, ops[0])
    elif m == "call":
        item.kind = "call"
        _aim(item, insn, ops[0])
    elif m in ("jrcxz", "jecxz", "loop", "loope", "loopne"):
        item.kind, item.condition, item.target = "branch", "overflow", ops[0].imm & _MASK64
        item.effects = (("forget", ("rcx",)), _no_flags()) if m[0] == "l" else (_no_flags(),)
    elif m[0] == "j" and m[1:] in _CC:
        item.kind, item.condition, item.target = "branch", _CC[m[1:]], ops[0].imm & _MASK64
    elif m in ("ud2", "ud1", "ud0", "int3", "int"):
        item.kind = "trap"
    elif m in ("hlt", "iretq", "sysretq", "sysexit"):
        item.kind = "stop"
    elif m[:4] in ("movs", "stos") and m[4:] in _UNITS and ops[0].type == x86.X86_OP_MEM:
        item.effects = _string(m[:4], _UNITS[m[4:]], words[0] == "rep")
    elif words[0] in ("rep", "repe", "repne"):
        item.effects = (*_generic(insn), ("forget", ("rcx", "rsi", "rdi")))
    elif m == "nop" or (m == "xchg" and insn.op_str == "ax, ax"):
        pass
    else:
        effects, otherwise, condition = _arith(insn, m)
        if words[0] == "lock" and m not in ("add", "sub", "and", "or", "xor", "inc", "dec", "btr",
                                            "bts", "btc", "neg"):  # fmt: skip
            effects = _generic(insn)
        item.effects, item.otherwise, item.condition = effects, otherwise, condition
        if condition:
            item.kind = "select"
    return item


def _aim(item: Insn, insn: capstone.CsInsn, op: capstone.x86.X86Op) -> None:
    if op.type == x86.X86_OP_IMM:
        item.target = op.imm & _MASK64
    else:
        item.through = _read(insn, op)


_SAMPLED = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", "rip", "flags")

STACK_SIZE = 16384  # THREAD_SIZE and IRQ_STACK_SIZE, arch/x86/include/asm/page_64_types.h

ARCH = Arch(
    name="x86_64",
    registers=tuple(REGISTERS),
    arguments=("rdi", "rsi", "rdx", "rcx", "r8", "r9"),
    result="rax",
    stack="rsp",
    stack_size=STACK_SIZE,
    clobbered=frozenset(["rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11"]),
    # struct pt_regs: di, si, dx, r10, r8, r9; the number is orig_ax.
    syscall_arguments=(112, 104, 96, 56, 72, 64),
    # ax, 80 of 168 bytes; with CONFIG_X86_FRED 16 more lie behind (TOP_OF_KERNEL_STACK_PADDING).
    syscall_result=(-88, -104),
    syscall_number=120,
    syscall_prefixes=(
        "__x64_sys_",
        "__ia32_sys_",
        "__ia32_compat_sys_",
        "__x64_compat_sys_",
        "__se_sys_",
        "__do_sys_",
    ),
    syscall_table="sys_call_table",
    syscall_dispatch="do_syscall_64",
    syscall_entries=("entry_SYSCALL", "do_syscall_64", "x64_sys_call"),
    syscalls=SYSCALLS,
    decode=decode,
    trace_site=trace_site,
    is_tracer=is_tracer,
    condition_holds=condition_holds,
    flags_for=flags_for,
    is_return_thunk=is_return_thunk,
    indirect_thunk=indirect_thunk,
    # kprobe event arguments: arch/x86/kernel/ptrace.c, regoffset_table.
    probe_registers={
        **{r: r[1:] if not r[1].isdigit() else r for r in REGISTERS},
        "flags": "flags",
    },
    # enum perf_event_x86_regs, arch/x86/include/uapi/asm/perf_regs.h
    sample_registers={
        **{name: bit for bit, name in enumerate(_SAMPLED)},
        **{f"r{number}": 8 + number for number in range(8, 16)},
    },
    is_interrupt_entry=is_interrupt_entry,
    fault_entry="asm_exc_page_fault",
    reads=reads,
    table_levels=levels,
    walk=walk,
    # System V psABI, figure 3.36.
    user_code=("cs", 0x33),  # __USER_CS, arch/x86/include/asm/segment.h
    dwarf=DwarfRegisters(
        saved={3: "bx", 6: "bp", 7: "sp", 12: "r12", 13: "r13", 14: "r14", 15: "r15", 16: "ip"},
        stack=7,
        frame=6,
        pc=16,
    ),
)
