"""A recording as a whole: names, arguments, tasks, probes, damage."""

import struct

import pytest
from tests.unit.record_build import COMMON, KERNELS, Names, Story, common, kept

from kwhy.errors import InputError
from kwhy.record.recording import syscall_name

A, B, C = 100, 200, 300
FORK = (
    "name: sched_process_fork\nID: 304\nformat:\n" + COMMON
    + "	field:char parent_comm[16];	offset:8;	size:16;	signed:0;\n"
    + "	field:pid_t parent_pid;	offset:24;	size:4;	signed:1;\n"
    + "	field:char child_comm[16];	offset:28;	size:16;	signed:0;\n"
    + "	field:pid_t child_pid;	offset:44;	size:4;	signed:1;\n"
)  # fmt: skip
NEWTASK = (
    "name: task_newtask\nID: 310\nformat:\n" + COMMON
    + "	field:pid_t pid;	offset:8;	size:4;	signed:1;\n"
    + "	field:char comm[16];	offset:12;	size:16;	signed:0;\n"
    + "	field:unsigned long clone_flags;	offset:32;	size:8;	signed:0;\n"
    + "	field:short oom_score_adj;	offset:40;	size:2;	signed:1;\n"
)  # fmt: skip
EXEC = (
    "name: sched_process_exec\nID: 303\nformat:\n" + COMMON
    + "	field:__data_loc char[] filename;	offset:8;	size:4;	signed:0;\n"
    + "	field:pid_t pid;	offset:12;	size:4;	signed:1;\n"
    + "	field:pid_t old_pid;	offset:16;	size:4;	signed:1;\n"
)  # fmt: skip
PROBE = (
    "name: p3\nID: 1600\nformat:\n" + COMMON
    + "	field:unsigned long __probe_ip;	offset:8;	size:8;	signed:0;\n"
    + "	field:s64 ax;	offset:16;	size:8;	signed:1;\n"
)  # fmt: skip


def tasks_story() -> Story:
    """A forks B and starts thread C; B runs another program."""
    story = Story()
    story.blobs["format/sched/sched_process_fork"] = FORK.encode()
    story.blobs["format/task/task_newtask"] = NEWTASK.encode()
    story.blobs["format/sched/sched_process_exec"] = EXEC.encode()
    story.call(A, 39, A)
    for child, flags in ((B, 0x11), (C, 0x10000)):
        story.add(common(310, A) + struct.pack("<i16sxxxxQh", child, b"sh", flags, 0))
        story.add(common(304, A) + struct.pack("<16si16si", b"sh", A, b"sh", child))
    story.call(B, 39, B)
    name = b"/usr/bin/a-very-long-program\0"
    story.add(common(303, B) + struct.pack("<Iii", len(name) << 16 | 20, B, B) + name)
    return story.call(B, 2, -2).call(C, 2, -13).enter(B, 231, 0x105)


def test_tasks_know_their_names_parents_and_processes() -> None:
    """Forks, threads and execs as the events tell them."""
    recording = tasks_story().read()
    child = recording.tasks[B]
    assert (B, A, "sh") == (child.pid, child.parent, child.comm)
    assert A == recording.tasks[C].pid
    failed = [recording.syscall(i) for i in recording.failing.tolist()]
    assert [(B, B, "a-very-long-pro"), (A, C, "sh")] == [(f.pid, f.tid, f.comm) for f in failed]
    assert 5 == recording.tasks[B].status


def test_arguments_are_unsigned_and_complete() -> None:
    """Six numbers as the registers held them."""
    recording = Story().call(A, 257, -2, -100, 0x7FFF0000, 0, 0o644).read()
    assert ((1 << 64) - 100, 0x7FFF0000, 0, 0o644, 0, 0) == recording.args(0)
    assert [list(recording.args(0))] == recording.args_of(recording.failing).tolist()


def test_probe_hits_come_with_the_window_they_fell_into() -> None:
    """Name, time, address and values; hits outside are only in the whole list."""
    story = Story(formats=["format/round0/p3"])
    story.blobs["format/round0/p3"] = PROBE.encode()
    hit = common(1600, A) + struct.pack("<Qq", 0xFFFFFFFF81000010, -5)
    story.enter(A, 2).add(hit).leave(A, 2, -5).add(hit)
    recording = story.read()
    (found,) = recording.syscall(0).probes
    assert ("p3", A, 0xFFFFFFFF81000010, {"ax": -5}) == (
        found.name, found.tid, found.ip, found.values
    )  # fmt: skip
    assert 2 == len(recording.hits("p3"))
    assert [] == recording.hits("p4")


def test_a_32_bit_programs_call_is_named_by_its_function() -> None:
    """Number 5 is open there; fstat by the 64-bit table would be wrong."""
    names = Names([(0x100, 0x100, "do_int80_syscall_32"), (0x1000, 0x80, "__ia32_compat_sys_open")])
    story = Story().enter(A, 5).function(A, 0x1004, 0x150).leave(A, 5, -2)
    record = story.read(names).syscall(0)
    assert ("open", True) == (record.name, record.compat)


def test_a_number_too_new_for_the_table_is_named_by_its_function() -> None:
    """A kernel newer than this program."""
    names = Names([(0x100, 0x100, "do_syscall_64"), (0x1000, 0x80, "__x64_sys_brand_new")])
    story = Story().enter(A, 900).function(A, 0x1004, 0x150).leave(A, 900, -2)
    recording = story.read(names)
    assert ("syscall_900", "brand_new") == (recording.name(0), recording.syscall(0).name)


@pytest.mark.parametrize(
    ("number", "name"),
    [(0, "read"), (16, "ioctl"), (231, "exit_group"), (462, "mseal"), (471, "rseq_slice_yield"),
     (0x40000000, "read"), (-1, "syscall_-1")],
)  # fmt: skip
def test_system_calls_have_names(number: int, name: str) -> None:
    """The table reaches to the newest kernel of the lab; x32 numbers carry a bit more."""
    assert name == syscall_name(number)


def test_a_recording_without_the_syscall_formats_is_bad_input() -> None:
    """Nothing can be said without them."""
    story = Story().call(A, 2, -2)
    del story.blobs["format/raw_syscalls/sys_exit"]
    with pytest.raises(InputError, match="sys_exit"):
        story.read()


def test_damage_and_loss_are_noted() -> None:
    """Never in silence."""
    story = Story(lost={0: 12}).call(A, 2, -2)
    pages = {0: story.pages[0] + b"cut off"}

    class Round:
        lost = story.lost
        formats: tuple[str, ...] = ()
        tasks: tuple[str, ...] = ()
        status = None
        tails: dict[str, str] = {}
        extra: dict[str, str] = {}

    Round.pages = pages  # type: ignore[attr-defined]
    from kwhy.record.recording import read_recording

    notes = read_recording(Round(), story.blobs.get, Names([])).notes  # type: ignore[arg-type]
    assert any("7 bytes at the end cut off" in note for note in notes)
    assert any("dropped 12 events" in note for note in notes)


@pytest.mark.parametrize("series", KERNELS)
def test_the_real_incident_is_found_on_every_kernel(series: str) -> None:
    """tcsetattr's EIO with its arguments."""
    recording = kept(f"eio-{series}").read()
    assert 1 == recording.counts[("ioctl", "EIO")]
    (index,) = [i for i in recording.failing.tolist() if recording.windows.ret[i] == -5]
    TCSETSW = 0x5403
    assert TCSETSW == recording.args(index)[1]
