"""Record a stack of this directory again: `python record.py VMCORE COMM OUT.json`.

VMCORE is a dump of a lab guest in which the tasks of ``kwhy.lab.hangs`` hang. Recorded are a task's
frames and stack words, the code of its functions, and as truth the parameters that drgn reads by
DWARF: values that the recovery under test does not use.
"""

import base64
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import drgn
from tests.unit.data.flow.record import Asked

from kwhy.arch import of
from kwhy.case.vmcore import VmcoreEvidence
from kwhy.diagnose.hang.memory import Memory
from kwhy.diagnose.hang.survey import survey
from kwhy.flow.cfg import Code
from kwhy.flow.places import Places
from kwhy.kernel.model import open_kernel
from kwhy.kernel.program import open_program


def truth(program: Any, task: int) -> dict[int, dict[str, int]]:
    """What DWARF says of the parameters, by the frame's pc and by parameter number."""
    found: dict[int, dict[str, int]] = {}
    for frame in program.stack_trace(drgn.Object(program, "struct task_struct *", task)):
        if frame.is_inline:
            continue
        try:
            parameters = program.function(frame.name).type_.parameters
        except LookupError:
            continue
        for number, parameter in enumerate(parameters[:6]):
            value = frame[parameter.name]
            if not value.absent_ and isinstance(value.value_(), int):
                found.setdefault(frame.pc, {})[str(number)] = int(value.value_()) & (1 << 64) - 1
    return found


def main(core: str, comm: str, out: str) -> None:
    """Write the stack of the task called ``comm``."""
    kernel = open_kernel(VmcoreEvidence(Path(core)))
    seen = survey(Memory(kernel))
    (task,) = [t for t in seen.tasks.by_address.values() if t.comm == comm]
    stack = seen.stacks[task.address]
    asked = Asked(kernel)
    code = Code(asked, of("x86_64"))
    for frame in stack.frames:
        assert frame.symbol is not None
        for call in Places(code, of("x86_64"), frame.symbol.address).calls.values():
            if call.insn.target is not None:
                code.name(code.resolve(call.insn.target))
    data = {
        "kernel": kernel.release,
        "symbols": sorted([n, f"{a:x}", s] for a, (n, s) in asked.named.items()),
        "code": {
            f"{a:x}": base64.b64encode(zlib.compress(c, 9)).decode()
            for a, c in sorted(asked.memory.items())
        },
        "faults": list(asked.faults.values()),
        "frames": [
            [f.name, f"{f.pc:x}", f"{f.cfa:x}", f"{f.symbol.address:x}"]
            for f in stack.frames
            if f.symbol
        ],
        "saved": {name: f"{value:x}" for name, value in stack.saved},
        "sp": f"{task.sp:x}",
        "words": [f"{word:x}" for word in stack.words],
        "truth": {f"{pc:x}": t for pc, t in truth(open_program(kernel), task.address).items()},
    }
    Path(out).write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:4])
