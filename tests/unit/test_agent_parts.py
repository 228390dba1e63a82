"""The agent's smaller parts on made-up files."""

import json
import os
import struct
from pathlib import Path

import pytest

from kwhy.agent import blobs, dynamic, facts, kcore, pages, probe, tracefs, tree
from kwhy.agent import buffer as buffers
from kwhy.agent.errors import AgentError
from kwhy.agent.journal import Journal


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("p vfs_read", "p:g/p3 vfs_read"),
        ("p:name vfs_read+4 %ax", "p:g/name vfs_read+4 %ax"),
        ("p:theirs/name vfs_read", "p:g/name vfs_read"),
        ("r16:ret vfs_read $retval:s64", "r16:g/ret vfs_read $retval:s64"),
        (" f:fp vfs_read%return $retval ", "f:g/fp vfs_read%return $retval"),
    ],
)
def test_probe_definitions_get_our_group(text: str, line: str) -> None:
    """Whatever group a definition names, the event lands in ours, so that we can remove it."""
    assert line == dynamic.parse(text, 3, "g")["definition"]


@pytest.mark.parametrize(
    "text", ["", "p", "-:theirs/event", "x:a b", "p:a b\n-:theirs/event", "p:bad-name f", "p:1a f"]
)
def test_what_is_no_probe_definition(text: str) -> None:
    """Removals, several lines and bad names are refused before the kernel sees them."""
    with pytest.raises(AgentError):
        dynamic.parse(text, 0, "g")


def test_probe_names_differ() -> None:
    """Two probes of one name would be one event."""
    with pytest.raises(AgentError, match="same name"):
        dynamic.parse_all(["p:a f", "r:a f"], "g")


def fake_kcore(path: Path) -> None:
    """An ELF core with two overlapping segments and a note."""
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 4, 62, 1, 0, 64, 0, 0, 64, 56, 3, 0, 0, 0)
    body = 64 + 3 * 56
    load = struct.Struct("<IIQQQQQQ")
    table = load.pack(4, 0, body, 0, 0, 4, 0, 0)
    table += load.pack(1, 7, body + 4, 0xFFFF000000000000, 0, 64, 64, 0)
    table += load.pack(1, 7, body + 4 + 64, 0xFFFF000000000010, 0, 16, 16, 0)
    path.write_bytes(header + table + b"NOTE" + b"a" * 64 + b"b" * 16)


def test_memory_comes_from_the_right_segment(tmp_path: Path) -> None:
    """The smallest segment wins; reads end with it; nothing outside."""
    file = tmp_path / "kcore"
    fake_kcore(file)
    core = kcore.Kcore(str(file))
    assert b"NOTE" == core.note
    start = 0xFFFF000000000000
    sizes, data = core.read([(start, 4), (start + 0x10, 100), (0x1000, 8), (start + 0x20, 100)])
    assert [4, 16, None, 32] == sizes
    assert b"a" * 4 + b"b" * 16 + b"a" * 32 == data
    os.close(core.fd)


@pytest.mark.parametrize("data", [b"", b"x" * 100, b"\x7fELF\x02\x01" + b"\xff" * 90])
def test_kcore_that_is_none(tmp_path: Path, data: bytes) -> None:
    """A file that is no core is a missing feature, not a crash."""
    file = tmp_path / "kcore"
    file.write_bytes(data)
    with pytest.raises(AgentError) as caught:
        kcore.Kcore(str(file))
    assert "kcore" == caught.value.feature


def test_build_id_of_notes() -> None:
    """The GNU build-id is found among other notes, with their padding."""
    other = struct.pack("<III", 5, 3, 1) + b"Xen\0\0\0\0\0" + b"abc\0"
    ours = struct.pack("<III", 4, 4, 3) + b"GNU\0" + bytes([1, 2, 3, 255])
    assert "010203ff" == probe.build_id(other + ours)
    assert "" == probe.build_id(other)
    assert "" == probe.build_id(b"\x01")


def test_kernel_log_records() -> None:
    """A /dev/kmsg record becomes level, sequence, time and text."""
    found = facts.parse_record(b"30,1234,5678901,-;tty: refused; why\n SUBSYSTEM=tty\n")
    assert {"seq": 1234, "level": 6, "time_us": 5678901, "text": "tty: refused; why"} == found
    assert "" == facts.parse_record(b"nonsense")["text"]


STATS = "entries: 5\noverrun: 7\ncommit overrun: 1\nbytes: 9\ndropped events: 2\nread events: 40\n"


def test_lost_events_are_counted_per_cpu(tmp_path: Path) -> None:
    """Overruns, drops and commit overruns add up; a CPU without any is left out."""
    for cpu, text in ((0, STATS), (11, "entries: 0\noverrun: 0\n")):
        (tmp_path / f"per_cpu/cpu{cpu}").mkdir(parents=True)
        (tmp_path / f"per_cpu/cpu{cpu}/stats").write_text(text)
    assert [0, 11] == pages.cpus(str(tmp_path))
    counts = pages.lost(str(tmp_path))
    assert 40 == counts["0"]["read"]
    assert {"0": 10} == pages.lost_events(counts)


@pytest.mark.parametrize(("wanted", "cpus"), [(None, 1), (None, 4), (None, 512), (64, 2), (1, 1)])
def test_buffer_size_is_bounded(wanted: int | None, cpus: int) -> None:
    """A wish is split over the CPUs, never below what a buffer needs."""
    each, total = pages.buffer_kb(wanted, cpus)
    assert total == each * cpus
    assert 8 <= each <= max(16384 // cpus, 512)


def test_users_of_the_top_level(tmp_path: Path) -> None:
    """Every sign of use is named; a fresh tracefs has none."""
    quiet = {
        "current_tracer": "nop",
        "set_event": "",
        "set_ftrace_filter": "#### all functions enabled ####",
        "set_ftrace_notrace": "#### no functions disabled ####",
        "set_ftrace_pid": "no pid",
        "set_event_pid": "",
    }
    for name, text in quiet.items():
        (tmp_path / name).write_text(text + "\n")
    assert [] == probe.users(str(tmp_path))
    for name, text in {
        "current_tracer": "function",
        "set_event": "sched:sched_switch\nirq:irq_handler_entry",
        "set_ftrace_filter": "vfs_read",
        "set_ftrace_pid": "12",
        "set_event_pid": "13",
    }.items():
        (tmp_path / name).write_text(text + "\n")
    found = "; ".join(probe.users(str(tmp_path)))
    assert "current_tracer is function; event sched:sched_switch and 1 more is enabled" in found
    assert found.count(" is set") == 3


def test_contents_of_the_top_level(tmp_path: Path) -> None:
    """A recording that lies in the top-level buffer is somebody's."""
    (tmp_path / "per_cpu/cpu0").mkdir(parents=True)
    (tmp_path / "per_cpu/cpu0/stats").write_text(STATS)
    assert "5 events" in buffers.contents(str(tmp_path))[0]
    (tmp_path / "per_cpu/cpu0/stats").write_text("entries: 0\n")
    assert [] == buffers.contents(str(tmp_path))


FEATURES = {"function_tracer": True, "function_graph": True, "tracefs": "/t", "instances": True}


@pytest.mark.parametrize(
    ("tracer", "extra", "own"),
    [
        ("nop", {"pid_filter_in_instance": True}, True),
        ("function", {"pid_filter_in_instance": True, "function_in_instance": True}, True),
        ("function", {"pid_filter_in_instance": True}, False),
        ("function_graph", {"pid_filter_in_instance": True, "function_in_instance": True}, False),
        ("function_graph", {"pid_filter_in_instance": True, "graph_in_instance": True}, True),
        ("nop", {}, False),
    ],
)
def test_which_buffer(tracer: str, extra: dict[str, bool], own: bool) -> None:
    """An instance whenever the kernel can do it in one, the top level otherwise."""
    found = buffers.choose("/t", Journal("/nowhere"), {**FEATURES, **extra}, tracer)
    assert own is found.own


def test_a_missing_tracer() -> None:
    """A tracer that the kernel lacks is a missing feature; one that does not exist a mistake."""
    with pytest.raises(AgentError, match="no function tracer") as caught:
        buffers.choose("/t", Journal("/nowhere"), {}, "function")
    assert "feature" == caught.value.kind
    with pytest.raises(AgentError, match="tracer is one of"):
        buffers.choose("/t", Journal("/nowhere"), FEATURES, "blk")


def test_what_is_chosen() -> None:
    """The bracketed one of a list, or the only one."""
    assert "mono" == tracefs.selected("local [mono] boot")
    assert "nop" == tracefs.selected("nop\n")


def test_own_threads_and_parents() -> None:
    """This process is among its parent's descendants, with its threads."""
    assert os.getpid() in tree.descendants(os.getppid())
    assert os.getpid() in tree.tree_threads(os.getppid())
    assert tree.start_time(os.getpid())
    assert "" == tree.start_time(2**22 + 1)
    seen = tree.Seen()
    seen.look([os.getpid(), 2**22 + 1])
    [task] = seen.listing()
    assert (os.getpid(), os.getpid(), os.getppid()) == (task["tid"], task["tgid"], task["ppid"])


def test_modules_are_json() -> None:
    """The module list is a JSON list on every host."""
    assert isinstance(json.loads(blobs.modules()), list)
