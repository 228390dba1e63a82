"""How fast kernel code runs offline, beside the emulator without any hook, on the same code.

The code is crc32_be(), the kernel's own, over 1 MiB of its memory: some millions of instructions
that no page fault interrupts after the first run.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import unicorn

from bench.guest import Bench
from kwhy import lab
from kwhy.arch import x86_64_emulation as arch
from kwhy.case.vmcore import VmcoreEvidence
from kwhy.emulate import Caller, decided
from kwhy.emulate.scene import RETURN
from kwhy.flow.cfg import Code
from kwhy.kernel.model import open_kernel

CALL = "crc32_be(0, (unsigned char *)&schedule, 0x100000)"
FIRST = "ring_buffer_empty_cpu(global_trace.array_buffer.buffer, 0)"
ROUNDS = 5


def calls(bench: Bench) -> dict[str, Any]:
    """Instructions per second bare, plain, tracked in detail; slicing and rollback per unit."""
    guest = lab.find(bench.name)
    assert guest is not None
    with tempfile.TemporaryDirectory() as scratch:
        core = Path(scratch) / "guest.core"
        guest.dump(core)
        command = [sys.executable, "-m", "kwhy", "call", "--core", str(core), FIRST]
        subprocess.run(command, check=True, capture_output=True)  # fills the disk cache
        begin = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        first = time.perf_counter() - begin
        return {"first_call_seconds": first, **_speeds(Caller(open_kernel(VmcoreEvidence(core))))}


def _speeds(caller: Caller) -> dict[str, Any]:
    outcome = caller.call(CALL)
    assert outcome.returned, outcome.end
    count, scene = outcome.instructions, outcome.scene
    arguments = [passed.value for passed in outcome.arguments]
    plain = _best(lambda: scene.enter(outcome.function.address, arguments))
    bare = _bare(caller, outcome)
    detailed = caller.call(CALL, detail=True)
    logged = _best(lambda: detailed.scene.enter(outcome.function.address, arguments))
    begin = time.perf_counter()
    history = detailed.history(Code(caller.kernel, caller.arch))
    decided(history)
    sliced = time.perf_counter() - begin
    return {
        "instructions": count,
        "bare_per_second": count / bare,
        "plain_per_second": count / plain,
        "logged_per_second": count / logged,
        "plain_of_bare": bare / plain,
        "logged_of_bare": bare / logged,
        "slicing_us_per_instruction": sliced / count * 1e6,
        "rollback_us_per_page": _rollback(scene),
    }


def _best(action: Any) -> float:
    """The shortest of some rounds, in seconds."""
    seconds = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def _bare(caller: Caller, outcome: Any) -> float:
    """The same code on the same pages, by unicorn with no hook but that for pages."""
    memory = outcome.scene.memory
    uc = arch.engine()
    uc.ctl_set_tlb_mode(unicorn.UC_TLB_VIRTUAL)
    uc.mem_map_ptr(0, memory.size, unicorn.UC_PROT_ALL, memory.host)

    def fill(_uc: Any, address: int, _access: int, entry: Any, _data: Any) -> bool:
        entry.paddr = memory.place(address & -4096)
        entry.perms = unicorn.UC_PROT_ALL
        return True

    uc.hook_add(unicorn.UC_HOOK_TLB_FILL, fill)
    stack = outcome.scene.stack_top - 8

    def run() -> None:
        for register, passed in zip(arch.ARGUMENTS, outcome.arguments, strict=False):
            uc.reg_write(arch.REGISTERS[register], passed.value)
        uc.reg_write(arch.REGISTERS[arch.STACK], stack)
        uc.reg_write(arch.REGISTERS[arch.CPU_BASE], outcome.scene.percpu)
        uc.emu_start(outcome.function.address, RETURN)

    return _best(run)


def _rollback(scene: Any) -> float:
    """Microseconds to undo, per page that was written."""
    memory = scene.memory
    pages = sorted(memory.pages)
    [memory.grant(page) for page in pages]
    begin = time.perf_counter()
    memory.rollback()
    return (time.perf_counter() - begin) / len(pages) * 1e6
