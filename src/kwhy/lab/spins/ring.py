"""The ring buffer's old bug, back in a modern kernel; and the way to set it off from user space."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kwhy.case.live import LiveEvidence
from kwhy.errors import FeatureError, KwhyError
from kwhy.kernel.model import open_kernel
from kwhy.kernel.types import Types
from kwhy.lab import kernels
from kwhy.lab.build import build_module
from kwhy.lab.spins import ON_ITS_OWN
from kwhy.link import Link

MODULE = Path(__file__).with_name("kwhy_ring.c")
INSTANCE = "bomb"
ROOT = "/sys/kernel/tracing/"
PID = "/tmp/reader"

_FIELDS = {
    "READER_PAGE": ("struct ring_buffer_per_cpu", "reader_page"),
    "COMMIT_PAGE": ("struct ring_buffer_per_cpu", "commit_page"),
    "PAGE_READ": ("struct buffer_page", "read"),
    "PAGE_DATA": ("struct buffer_page", "page"),
    "DATA_COMMIT": ("struct buffer_data_page", "commit"),
}


def definitions(types: Types) -> dict[str, int]:
    """What the module has to be told about the kernel's structures: offsets of their fields."""
    out = {}
    for name, (struct, path) in _FIELDS.items():
        kind = types.named(struct)
        field = types.field(kind, path) if kind is not None else None
        if field is None:
            raise FeatureError(f"the kernel's type information lacks {path} of {struct}", "btf")
        out[name] = field.offset
    return out


#: The steps of the field report's author, in the words of models/ring_buffer.py.
INCIDENT = ("write", "write", "consume", "write", "consume", "discard", "consume")

#: Prepares a buffer: two pages and the reader's, an event that always fails its filter, and a
#: trigger that wants time stamps, without which such an event would not even reach the buffer. The
#: event has to be one of a call that nobody makes by chance.
_ARM = """set -e
cd /sys/kernel/tracing
echo 'p:bomb __x64_sys_getppid' >> kprobe_events
cd {place}
echo 0 > tracing_on
echo 4 > buffer_size_kb
echo '__probe_ip == 0' > events/kprobes/bomb/filter
echo 'hist:keys=common_pid:ts0=common_timestamp.usecs if __probe_ip == 0' \
 > events/kprobes/bomb/trigger
echo 1 > events/kprobes/bomb/enable
echo > trace
echo 1 > tracing_on
"""

#: One step by each word, in their order, by one process on one processor.
STEP = """import os, sys
root = "/sys/kernel/tracing/"
pipe = os.open(root + "trace_pipe", os.O_RDONLY | os.O_NONBLOCK)
marker = os.open(root + "trace_marker", os.O_WRONLY)

def write():
    os.write(marker, b"x" * 4038)  # what is left of the page is too small for any event

def discard():
    os.getppid()

def consume():
    os.read(pipe, 4000)  # as much as ends after one event: the next is not touched
    os.read(pipe, 4000)  # the rest of its line

for step in sys.argv[1:]:
    {"write": write, "discard": discard, "consume": consume}[step]()
"""

_READ_ON = """os.set_blocking(pipe, True)
while True:
    os.read(pipe, 4096)
"""


def load(link: Link, release: str) -> None:
    """Bring the bug back in a guest."""
    version = kernels.by_release(release)
    assert version is not None
    types = open_kernel(LiveEvidence(link)).types
    link.put(build_module(version, MODULE, definitions=definitions(types)), "ring.ko")
    _run(link, "insmod", "ring.ko")


def arm(link: Link, instance: str | None = None) -> None:
    """Prepare the buffer of the whole system, or a new instance's."""
    place = "." if instance is None else f"instances/{instance}"
    if instance is not None:
        _run(link, "mkdir", "-p", f"/sys/kernel/tracing/{place}")
    _run(link, "sh", "-c", _ARM.format(place=place))


def detonate(link: Link, steps: Sequence[str]) -> int:
    """Do the steps of a sequence in a guest, and read on; the number of the thread that reads."""
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "detonate.py"
        program.write_text(STEP.replace(ROOT, f"{ROOT}instances/{INSTANCE}/") + _READ_ON)
        link.put(program, "/tmp/detonate.py")
    arm(link, INSTANCE)
    reader = f"{' '.join(ON_ITS_OWN)} python3 /tmp/detonate.py {' '.join(steps)}"
    inner = f"echo $$ > {PID}; exec {reader}"
    return int(_run(link, "sh", "-c", f"setsid sh -c '{inner}' < /dev/null > /dev/null 2>&1 & "
                    f"sleep 3; cat {PID}"))  # fmt: skip


def _run(link: Link, *words: str) -> str:
    """The output of a command that has to succeed."""
    output = b""
    status: dict[str, Any] = {}
    with link.stream("spawn", timeout=60, argv=list(words)) as stream:
        for message in stream:
            output += message.data
            if message.kind == "end":
                status = message.header["status"]
    if status.get("code") != 0:
        text = output.decode("utf-8", "replace").strip()
        raise KwhyError(f"{words[0]} failed in the guest: {text or status}")
    return output.decode("utf-8", "replace")
