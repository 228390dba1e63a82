"""How fast kernel code runs offline, beside the emulator without any hook, on the same code.

Two calls: crc32_be() over 1 MiB, a tight loop of some millions of instructions; and a search for
a name that no symbol has, which is code of the ordinary kind, of short blocks and many calls.
"""

import ctypes
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import unicorn
from unicorn.unicorn_py3.unicorn import uclib

from bench.guest import Bench
from kwhy import lab
from kwhy.arch import x86_64_emulation as arch
from kwhy.case.vmcore import VmcoreEvidence
from kwhy.emulate import Caller, decided
from kwhy.emulate.call import Outcome
from kwhy.emulate.scene import RETURN
from kwhy.flow.cfg import Code
from kwhy.kernel.model import open_kernel

CALLS = {
    "loop": "crc32_be(0, (unsigned char *)&schedule, 0x100000)",
    "ordinary": 'kallsyms_lookup_name("a_name_that_no_symbol_has")',
}
FIRST = "ring_buffer_empty_cpu(global_trace.array_buffer.buffer, 0)"
ROUNDS = 5
_ENOUGH = 0.01  # seconds that one round takes at least


def calls(bench: Bench) -> dict[str, Any]:
    """Instructions per second bare, plain and tracked; slicing; undoing; the first call."""
    guest = lab.find(bench.name)
    assert guest is not None
    with tempfile.TemporaryDirectory() as scratch:
        core = Path(scratch) / "guest.core"
        guest.dump(core)
        return measure(core)


def measure(core: Path) -> dict[str, Any]:
    """The same on a dump."""
    command = [sys.executable, "-m", "kwhy", "call", "--core", str(core), FIRST]
    usual = {name: v for name, v in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    seconds, worked = [], []
    for _ in range(4):  # the first one fills the disk cache
        begin, used = time.perf_counter(), _children()
        subprocess.run(command, check=True, capture_output=True, env=usual)
        seconds.append(time.perf_counter() - begin)
        worked.append(_children() - used)
    caller = Caller(open_kernel(VmcoreEvidence(core)))
    speeds = {name: _speeds(caller, text) for name, text in CALLS.items()}
    return {
        "first_call_seconds": min(seconds[1:]),
        "first_call_processor_seconds": min(worked[1:]),
        **speeds,
        "rollback": _rollback(caller),
    }


def _children() -> float:
    """Processor seconds of the commands that were run so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _speeds(caller: Caller, text: str) -> dict[str, Any]:
    outcome = caller.call(text)
    assert outcome.returned, outcome.end
    count, entry = outcome.instructions, outcome.function.address
    arguments = [passed.value for passed in outcome.arguments]
    plain = _best(lambda: outcome.scene.enter(entry, arguments))
    detailed = caller.call(text, detail=True)
    passed = [each.value for each in detailed.arguments]
    logged = _best(lambda: detailed.scene.enter(entry, passed))
    code = Code(caller.kernel, caller.arch)
    sliced = _best(lambda: decided(detailed.history(code)))
    why = _best(lambda: decided(caller.call(text, detail=True).history(code)))
    bare = _best(_bare(outcome, None))
    hooked = _best(_bare(outcome, unicorn.UC_HOOK_MEM_READ_AFTER | unicorn.UC_HOOK_MEM_WRITE))
    return {
        "instructions": count,
        "accesses": len(detailed.scene.machine.track.accesses),
        "bare_per_second": count / bare,
        "plain_per_second": count / plain,
        "logged_per_second": count / logged,
        "hooked_per_second": count / hooked,
        "why_per_second": count / why,
        "plain_of_bare": bare / plain,
        "logged_of_bare": bare / logged,
        "hooked_of_bare": bare / hooked,
        "slicing_us_per_instruction": sliced / count * 1e6,
    }


def _best(action: Callable[[], Any]) -> float:
    """Processor seconds of one action, so that other work of the machine disturbs little: the best
    of some rounds, each repeated until it can be measured."""
    begin = time.process_time()
    action()
    times = max(1, round(_ENOUGH / max(time.process_time() - begin, 1e-6)))
    seconds = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        for _ in range(times):
            action()
        seconds.append((time.process_time() - begin) / times)
    return min(seconds)


def _bare(outcome: Outcome, hook: int | None) -> Callable[[], None]:
    """The same code on the same pages, by unicorn with no hook but that for pages.

    ``hook``: and one of these kinds that does nothing, which is the least that tracking can cost.
    """
    memory = outcome.scene.memory
    uc = arch.engine()
    uc.ctl_set_tlb_mode(unicorn.UC_TLB_VIRTUAL)
    uc.mem_map_ptr(0, memory.size, unicorn.UC_PROT_ALL, memory.host)

    def fill(_uc: Any, address: int, _access: int, entry: Any, _data: Any) -> bool:
        entry.paddr = memory.place(address & -4096)
        entry.perms = unicorn.UC_PROT_ALL
        return True

    uc.hook_add(unicorn.UC_HOOK_TLB_FILL, fill)
    if hook is not None:
        nothing = ctypes.cast(ctypes.CDLL(None).abs, ctypes.c_void_p)
        handle = ctypes.c_size_t()
        every = (ctypes.c_uint64(1), ctypes.c_uint64(0))
        uclib.uc_hook_add(uc._uch, ctypes.byref(handle), hook, nothing, None, *every)
    scene = outcome.scene
    stack = scene.stack_top - 8
    values = dict(zip(arch.ARGUMENTS, (p.value for p in outcome.arguments), strict=False))
    values |= {arch.STACK: stack, arch.CPU_BASE: scene.percpu}
    scene.memory.poke(stack, RETURN.to_bytes(8, "little"))

    def run() -> None:
        uc.reg_write_batch([(arch.REGISTERS[name], value) for name, value in values.items()])
        uc.emu_start(outcome.function.address, RETURN)

    return run


def _rollback(caller: Caller) -> dict[int, float]:
    """Microseconds to undo, by how many pages were written."""
    out = {}
    for count in (1, 10, 100):
        memory = caller.scene().memory
        for page in sorted(memory.pages)[:1]:
            memory.grant(page)
        base = 0x7000_0000_0000
        for page in range(base, base + (count - 1) * 4096, 4096):
            memory.add(page, b"")
            memory.grant(page)
        out[count] = _best(memory.rollback) * 1e6
    return out
