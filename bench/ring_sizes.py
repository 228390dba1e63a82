"""models/ring_buffer.py with exact sizes and small events: its states are many."""

import runpy
from pathlib import Path
from types import SimpleNamespace

ring = SimpleNamespace(
    **runpy.run_path(str(Path(__file__).parent.parent / "models" / "ring_buffer.py"))
)

OPERATIONS = ("write", "discard", "consume", "write_small")
DEPTH = 20
prepare, write, discard, consume, bad = (
    ring.prepare, ring.write, ring.discard, ring.consume, ring.bad,
)  # fmt: skip


def write_small(world):
    world.call("ring_buffer_write", world.buffer, 1000, world.data)


def state(world):
    counts = (
        world.field(world.cpu_buffer, ring.CPU_BUFFER, name)
        for name in ("entries", "overrun", "read")
    )
    return (*counts, *(row[1:] for row in ring.facts(world)))
