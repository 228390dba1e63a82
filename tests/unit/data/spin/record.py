"""Record the cases of this directory again: `python record.py CASE.kwhy OUT.json`.

CASE is what `kwhy spin --lab GUEST --save CASE TID` kept of a thread in the lab's spin module. The
function that loops is recorded, a few samples, and the rounds that the breakpoint at its loop's
head recorded.
"""

import base64
import json
import struct
import sys
import zlib
from pathlib import Path

from kwhy import arch as architectures
from kwhy.case.casefile import CaseFile
from kwhy.diagnose import spin
from kwhy.kernel.model import open_kernel

SAMPLES, ROUNDS = 24, 64


def first(data: bytes, count: int) -> str:
    """The first records, packed."""
    at = 0
    for _ in range(count):
        if at + 8 > len(data):
            break
        at += struct.unpack_from("<H", data, at + 6)[0]
    return base64.b85encode(zlib.compress(data[:at], 9)).decode()


def main(path: Path, out: Path) -> None:
    """Write what the tests need of a case."""
    case = CaseFile(path)
    kernel = open_kernel(case)
    answer = spin.explain(case, kernel)
    assert answer.loop is not None
    (symbol,) = kernel.symbols.named(answer.loop.function)
    head = symbol.address + int(answer.loop.head, 16)
    rounds = ""
    for key, kept in case.facts.extra.items():
        asked = kept.get("asked", []) if isinstance(kept, dict) else []
        for index, event in enumerate(asked if isinstance(asked, list) else []):
            if isinstance(event, dict) and event.get("address") == head and not rounds:
                rounds = first(case.blob(f"{key}/{index}") or b"", ROUNDS)
    text = {
        "state": answer.state,
        "function": symbol.name,
        "address": symbol.address,
        "code": kernel.code(symbol.address, symbol.size).hex(),
        "registers": architectures.of(kernel.arch).sample_registers,
        "head": head,
        "samples": first(case.blob("watch/0/0") or b"", SAMPLES),
        "rounds": rounds,
    }
    out.write_text(json.dumps(text, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
