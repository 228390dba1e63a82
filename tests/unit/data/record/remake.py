"""Makes the kept recordings again: ``python tests/unit/data/record/remake.py [SERIES ...]``.

Boots each kernel in the lab, records the tcsetattr incident with `record_guest.py`, and keeps of
it the pages around the failing ioctl, the symbols they mention and what the live code says about
those functions, as ``eio-SERIES.zip`` beside this file.
"""

import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from kwhy import lab
from kwhy.arch import of
from kwhy.case.live import LiveEvidence
from kwhy.flow.cfg import Code
from kwhy.kernel.model import open_kernel
from kwhy.lab.build import build_program
from kwhy.lab.incidents import INCIDENTS
from kwhy.record.pages import decode_pages
from kwhy.record.recording import read_recording

HERE = Path(__file__).parent
IOCTL = 16
MARGIN = 60_000  # ns kept on either side of the call


def record(series: str) -> None:
    """One kernel."""
    with lab.connect(series) as connection:
        link = connection.link
        program = build_program(INCIDENTS["tcsetattr_orphan"].source)
        link.put(program, "/tmp/eio")
        link.put(HERE / "record_guest.py", "/tmp/record_guest.py")
        out = b""
        argv = ["python3", "/tmp/record_guest.py", "/tmp/eio"]
        with link.stream("spawn", timeout=120, argv=argv) as stream:
            for message in stream:
                if message.kind == "out":
                    out += message.data
                elif message.kind == "err":
                    sys.stderr.write(message.data.decode("utf-8", "replace"))
        with tarfile.open(fileobj=io.BytesIO(out)) as tar:
            files = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore
        kernel: Any = open_kernel(LiveEvidence(link), "none", "none")
        keep(series, files, kernel, Code(kernel, of("x86_64")))


def keep(series: str, files: dict[str, bytes], kernel: Any, code: Code) -> None:
    """Cut the recording down and write the archive."""
    facts = json.loads(files["facts.json"])
    blobs = {name[5:]: data for name, data in files.items() if name.startswith("blob/")}
    pages = {int(n[3:]): d for n, d in files.items() if n.startswith("cpu") and d}
    round_ = SimpleNamespace(
        pages=pages, lost={}, formats=[], tasks=[], status=facts["status"],
        tails={"err": facts["err"]}, extra={"armed": {"pid": facts["pid"]}},
    )  # fmt: skip
    asked = Asked(code)
    recording = read_recording(round_, blobs.get, kernel.symbols, asked)
    index = next(
        i for i in recording.failing.tolist()
        if recording.windows.nr[i] == IOCTL and recording.windows.ret[i] == -5
    )  # fmt: skip
    recording.syscall(index)  # the code it asks for is what is kept
    begin = int(recording.windows.enter[index]) - MARGIN
    end = int(recording.windows.exit[index]) + MARGIN
    some = {cpu: data for cpu, raw in pages.items() if (data := cut(raw, begin, end))}
    events = decode_pages(some)
    low, high = int(events.time.min()), int(events.time.max())
    symbols = {}
    for start in asked.functions | set(functions_of(events)):
        symbol = kernel.symbols.at(start)
        if symbol is not None:
            symbols[symbol.address] = [symbol.address, symbol.size, symbol.name]
    known = set(symbols)
    kept = {
        "status": facts["status"],
        "tails": {"err": facts["err"]},
        "extra": {"armed": {"pid": facts["pid"]}},
        "symbols": [symbols[a] for a in sorted(symbols)],
        "targets": asked.targets,
        "callees": {f: sorted(known & c) for f, c in asked.called.items()},
        "untraced": sorted(f for f in known if not code.traceable(f)),
    }
    lines = [
        line for line in files["trace.txt"].decode().splitlines()
        if not line.startswith("#") and low - 1000 <= stamp(line) <= high + 1000
    ]  # fmt: skip
    with zipfile.ZipFile(HERE / f"eio-{series}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for cpu, data in some.items():
            archive.writestr(f"cpu{cpu}", data)
        for name, data in blobs.items():
            archive.writestr(f"blob/{name}", data)
        archive.writestr("facts.json", json.dumps(kept))
        archive.writestr("trace.txt", "\n".join(lines))
    print(series, {c: len(d) // 4096 for c, d in some.items()}, len(symbols), "symbols")


class Asked:
    """Passes questions on to the live code and remembers the answers."""

    def __init__(self, code: Code) -> None:
        self.code = code
        self.targets: dict[int, int] = {}
        self.called: dict[int, frozenset[int]] = {}
        self.functions: set[int] = set()

    def direct_target(self, site: int, /) -> int | None:
        found = self.code.direct_target(site)
        if found is not None:
            self.targets[site] = found
            self.functions.add(found)
        return found

    def callees(self, function: int, /) -> frozenset[int] | None:
        found = self.code.callees(function)
        if found is not None:
            self.called[function] = found
            self.functions.add(function)
        return found

    def traceable(self, function: int, /) -> bool:
        return self.code.traceable(function)

    def repeats(self, function: int, site: int, /) -> bool | None:
        return self.code.repeats(function, site)


def functions_of(events: Any) -> set[int]:
    """Every address that function events among these mention."""
    rows = np.flatnonzero((events.type == 1) & (events.size >= 24))
    found: set[int] = set()
    for row in rows.tolist():
        at = int(events.offset[row]) + 8
        ip, parent = np.frombuffer(events.data[at : at + 16].tobytes(), "<u8").tolist()
        found |= {ip, parent - 1}
    return found


def cut(raw: bytes, begin: int, end: int) -> bytes:
    """The pages that hold events of that time."""
    whole = [raw[i : i + 4096] for i in range(0, len(raw) - 4095, 4096)]
    starts = [int.from_bytes(page[:8], "little") for page in whole]
    return b"".join(
        page
        for i, page in enumerate(whole)
        if starts[i] <= end and (i + 1 == len(whole) or starts[i + 1] >= begin)
    )


def stamp(line: str) -> int:
    """Time of a line of the trace file in ns."""
    word = next(w for w in line.split() if w.endswith(":") and w[:-1].replace(".", "").isdigit())
    seconds, micros = word[:-1].split(".")
    return int(seconds) * 10**9 + int(micros) * 1000


if __name__ == "__main__":
    for name in sys.argv[1:] or ("5.10", "6.1", "6.12", "7.2"):
        record(name)
