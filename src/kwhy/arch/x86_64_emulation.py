"""x86-64 as the emulator needs it: registers, how a function is entered, what code is patched.

Sources: System V AMD64 ABI; Intel SDM volume 2; arch/x86/mm/extable.c for what a fixup does.
"""

from collections.abc import Callable

import capstone
from unicorn import UC_ARCH_X86, UC_MODE_64, Uc
from unicorn import x86_const as x86

from kwhy.arch import x86_64
from kwhy.arch.x86_64 import is_tracer

REGISTERS: dict[str, int] = {
    "rax": x86.UC_X86_REG_RAX, "rbx": x86.UC_X86_REG_RBX, "rcx": x86.UC_X86_REG_RCX,
    "rdx": x86.UC_X86_REG_RDX, "rsi": x86.UC_X86_REG_RSI, "rdi": x86.UC_X86_REG_RDI,
    "rbp": x86.UC_X86_REG_RBP, "rsp": x86.UC_X86_REG_RSP, "r8": x86.UC_X86_REG_R8,
    "r9": x86.UC_X86_REG_R9, "r10": x86.UC_X86_REG_R10, "r11": x86.UC_X86_REG_R11,
    "r12": x86.UC_X86_REG_R12, "r13": x86.UC_X86_REG_R13, "r14": x86.UC_X86_REG_R14,
    "r15": x86.UC_X86_REG_R15, "rip": x86.UC_X86_REG_RIP, "rflags": x86.UC_X86_REG_RFLAGS,
    "gs_base": x86.UC_X86_REG_GS_BASE, "cr3": x86.UC_X86_REG_CR3,
}  # fmt: skip

GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
           "r13", "r14", "r15")  # fmt: skip
"""The general registers in the order of their numbers."""

ARGUMENTS = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
RESULT, STACK, PC, FLAGS, CPU_BASE, ROOT = "rax", "rsp", "rip", "rflags", "gs_base", "cr3"
RESULT_HIGH = "rdx"
"""The upper half of a result of two words."""
ENABLED_FLAGS = 0x202
"""Interrupts on, all else clear."""

TRAP = b"\xcc"
TRAP_VECTOR = 3
UNDEFINED = b"\x0f\x0b"
HALT = b"\xf4"
PKEYS_READ, PKEYS_WRITE = b"\x0f\x01\xee", b"\x0f\x01\xef"
"""rdpkru and wrpkru, which the emulated processor lacks."""
PKEYS_DEFAULT = 0x55555554
"""What a task's protection keys allow unless it asks (init_pkru_value, arch/x86/mm/pkeys.c)."""
VECTORS = {0: "divide error", 1: "debug exception", 4: "overflow", 5: "bound range exceeded",
           6: "invalid opcode", 8: "double fault", 13: "general protection fault",
           14: "page fault", 16: "floating-point error", 17: "alignment check",
           19: "SIMD floating-point error", 21: "control protection fault"}  # fmt: skip
COUNTER_READS = ("rdtsc", "rdtscp")
COUNTER = ("rax", "rdx")
"""Where the halves of the time-stamp counter go, the lower one first."""
PORT_INSTRUCTIONS = (x86.UC_X86_INS_IN, x86.UC_X86_INS_OUT)

USER_END = 1 << 56
"""First address that no user mapping can have, with 4 or 5 levels of page tables."""

IMAGE_BASE = 0xFFFFFFFF80000000
"""Where physical address ``phys_base`` is mapped (__START_KERNEL_map)."""

HOLE = 0xFFFFFFFF7D000000
HOLE_END = IMAGE_BASE
"""Addresses below the image that nothing uses (Documentation/arch/x86/x86_64/mm.rst)."""

STACK_SIZE = x86_64.STACK_SIZE
PT_REGS_SIZE = 168
PT_REGS_FLAGS, PT_REGS_RESULT = 144, 80

_NOP5 = b"\x0f\x1f\x44\x00\x00"
_PAGE_FAULT = 14
_EFAULT = 14
_MASK = (1 << 64) - 1


def engine() -> Uc:
    """An emulator of a processor with what kernels patch themselves to use (stac, clac)."""
    uc = Uc(UC_ARCH_X86, UC_MODE_64)
    uc.ctl_set_cpu_model(x86.UC_CPU_X86_EPYC_ROME)
    return uc


COUNTER_INSTRUCTIONS = (x86.UC_X86_INS_RDTSC, x86.UC_X86_INS_RDTSCP)


def tracer_call(code: bytes, address: int, name: Callable[[int], str | None]) -> bytes | None:
    """What belongs in place of a call to the function tracer at ``address``, None if it is none.

    ``code`` begins there; ``name`` names the code symbol at an address. A trampoline that the
    kernel made at run time has no symbol of its own, or one that names its maker.
    """
    if code[:1] != b"\xe8" or len(code) < 5:
        return None
    target = (address + 5 + int.from_bytes(code[1:5], "little", signed=True)) & _MASK
    symbol = name(target)
    if symbol is None or is_tracer(symbol):
        return _NOP5
    return None


def accessed(code: bytes, address: int, get: Callable[[str], int]) -> list[int]:
    """The memory addresses that the instruction at ``address`` uses; ``get`` reads a register."""
    out = []
    for insn in _md.disasm(code, address, 1):
        for operand in insn.operands:
            if operand.type != capstone.x86.X86_OP_MEM:
                continue
            mem = operand.mem
            total = mem.disp
            for register, scale in ((mem.base, 1), (mem.index, mem.scale)):
                name = _md.reg_name(register) if register else ""
                if name == "rip":
                    total += (address + insn.size) * scale
                elif name in REGISTERS:
                    total += get(name) * scale
            if mem.segment == capstone.x86.X86_REG_GS:
                total += get(CPU_BASE)
            out.append(total & _MASK)
        if insn.mnemonic.split()[0] in ("push", "call"):
            out.append(get(STACK) - 8 & _MASK)
        if insn.mnemonic.split()[0] in ("pop", "ret"):
            out.append(get(STACK))
    return out


_md = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
_md.detail = True


def fixup(
    kind: str, register: str | None, imm: int | None, registers: dict[str, int]
) -> dict[str, int] | None:
    """The registers that the kernel's fault handler changes before it goes on at the fixup.

    None for a kind that is not modelled.
    """
    if kind in ("default", "uaccess"):
        return {}
    if kind in ("fault", "copy"):
        return {"rax": _PAGE_FAULT}
    if kind == "efault_reg" and register:
        return {register: -_EFAULT & _MASK}
    if kind == "imm_reg" and register and imm is not None:
        return {register: imm & _MASK}
    if kind == "ucopy_len" and register and imm is not None:
        return {"rcx": (imm * registers["rcx"] + registers[register]) & _MASK}
    return None
