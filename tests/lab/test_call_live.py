"""kwhy call on a running kernel: dry runs against the real calls, nothing changed, cases."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.lab.conftest import Guests
from tests.lab.desk import kwhy

from kwhy import lab
from kwhy.case.live import LiveEvidence
from kwhy.emulate import Caller, dry_run
from kwhy.kernel.model import open_kernel
from kwhy.link import Link
from kwhy.report.schema import validate

pytestmark = pytest.mark.lab

CALLS: dict[str, tuple[int, list[int | str]]] = {
    "getpid()": (39, []),
    "getppid()": (110, []),
    "getuid()": (102, []),
    "getegid()": (108, []),
    "getsid(0)": (124, [0]),
    "getpriority(0, 0)": (140, [0, 0]),
    "sched_getscheduler(0)": (145, [0]),
    "umask(18)": (95, [18]),
    "personality(0xffffffff)": (135, [0xFFFFFFFF]),
    "lseek(0, 0, 0)": (8, [0, 0, 0]),
    "lseek(99, 0, 0)": (8, [99, 0, 0]),
    "fcntl(0, F_GETFD)": (72, [0, 1]),
    "fcntl(0, F_GETFL)": (72, [0, 3]),
    "fcntl(99, F_GETFD)": (72, [99, 1]),
    "dup2(99, 98)": (33, [99, 98]),
    "dup3(0, 0, 0)": (292, [0, 0, 0]),
    "read(99, 0, 0)": (0, [99, 0, 0]),
    "close(99)": (3, [99]),
    "ioctl(0, TCGETS, 0)": (16, [0, 0x5401, 0]),
    "kill(1, 0)": (62, [1, 0]),
    "kill(99999, 9)": (62, [99999, 9]),
    "kill(1, 999)": (62, [1, 999]),
    'openat(AT_FDCWD, "/etc/shadow", O_RDWR)': (257, [-100, "/etc/shadow", 2]),
    'openat(AT_FDCWD, "/etc/passwd", O_RDONLY)': (257, [-100, "/etc/passwd", 0]),
    'openat(AT_FDCWD, "/nonexistent", O_RDONLY)': (257, [-100, "/nonexistent", 0]),
    'openat(AT_FDCWD, "/etc", O_WRONLY)': (257, [-100, "/etc", 1]),
    'faccessat(AT_FDCWD, "/etc/shadow", 4)': (269, [-100, "/etc/shadow", 4]),
    'mkdirat(AT_FDCWD, "/etc/passwd/x", 0)': (258, [-100, "/etc/passwd/x", 0]),
    'unlinkat(AT_FDCWD, "/nonexistent", 0)': (263, [-100, "/nonexistent", 0]),
    'chdir("/etc/passwd")': (80, ["/etc/passwd"]),
    'chroot("/")': (161, ["/"]),
    'statfs("/nonexistent", 0)': (137, ["/nonexistent", 0]),
    'sethostname("x", -1)': (170, ["x", -1]),
    'mount("a", "/nonexistent", "tmpfs", 0, 0)': (165, ["a", "/nonexistent", "tmpfs", 0, 0]),
    "socket(999, 1, 0)": (41, [999, 1, 0]),
    "epoll_create1(12345)": (291, [12345]),
    "eventfd2(0, 12345)": (290, [0, 12345]),
    "getrandom(0, 0, 99)": (318, [0, 0, 99]),
    "nanosleep(0, 0)": (35, [0, 0]),
    "sysinfo(0)": (99, [0]),
    "clock_getres(99, 0)": (229, [99, 0]),
    "prctl(3, 0, 0, 0, 0)": (157, [3, 0, 0, 0, 0]),
    "setuid(0)": (105, [0]),
}

PROGRAM = """
import ctypes, json, os, sys, time
calls = json.load(open(sys.argv[1]))
user = int(sys.argv[2])
if user:
    os.setgroups([]); os.setgid(user); os.setuid(user)
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def real(number, arguments):
    given = [ctypes.c_char_p(a.encode()) if isinstance(a, str) else ctypes.c_long(a)
             for a in arguments]
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *given)
    return -ctypes.get_errno() if result == -1 else result
real(39, [])
print(os.getpid(), flush=True)
while not os.path.exists(f"/tmp/go{user}"):
    time.sleep(0.1)
results = {}
for text, (number, arguments) in calls.items():
    results[text] = real(number, arguments)
    if text.startswith("openat") and results[text] > 0:
        os.close(results[text])
print(json.dumps(results), flush=True)
"""


@dataclass
class Waiting:
    """A process in the guest that makes the calls of the table when it is told to."""

    pid: int
    user: int
    messages: Any
    link: Link

    def results(self) -> dict[str, int]:
        """Tell it to go on; what the real calls gave."""
        shell(self.link, f"touch /tmp/go{self.user}")
        text = b""
        for message in self.messages:
            if message.kind == "out":
                text += message.data
            if message.kind == "end":
                break
        found = json.loads(text)
        assert isinstance(found, dict)
        return found


def shell(link: Link, command: str) -> bytes:
    out = b""
    stream = link.stream("spawn", timeout=60, argv=["/bin/sh", "-c", command])
    with stream:
        for message in stream:
            if message.kind == "out":
                out += message.data
            if message.kind == "end":
                break
    return out


@pytest.fixture
def waiting(guests: Guests, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Waiting]:
    """A process of the user ``request.param`` (0: root)."""
    user = int(request.param)
    for name, text in (("calls.json", json.dumps(CALLS)), ("caller.py", PROGRAM)):
        (tmp_path / name).write_text(text)
    guest = guests("6.12")
    with lab.open_link(guest) as link, lab.open_link(guest) as other:
        for name in ("calls.json", "caller.py"):
            link.put(tmp_path / name, f"/tmp/{name}")
        shell(other, f"rm -f /tmp/go{user}")
        argv = ["python3", "/tmp/caller.py", "/tmp/calls.json", str(user)]
        stream = link.stream("spawn", timeout=60, argv=argv)
        with stream:
            for message in stream:
                if message.kind == "out":
                    yield Waiting(int(message.data), user, stream, other)
                    break


@pytest.mark.parametrize("waiting", [0, 1000], indirect=True, ids=["root", "user"])
def test_dry_runs_agree_with_the_real_calls(waiting: Waiting) -> None:
    """Good and failing calls, dry first and then for real in the same process."""
    evidence = LiveEvidence(waiting.link)
    caller = Caller(open_kernel(evidence), task=waiting.pid)
    dry = {}
    for text in CALLS:
        outcome = dry_run(caller, text)
        dry[text] = int(outcome.result.value_()) if outcome.returned else outcome.end.reason
    real = waiting.results()
    assert real == dry


FILTERED = """
import ctypes, os, struct, time
libc = ctypes.CDLL(None, use_errno=True)
def dry(name, mode):
    result = getattr(libc, name[0])(*name[1:], mode)
    return -ctypes.get_errno() if result else 0
code = [(0x20, 0, 0, 0), (0x15, 0, 1, 83), (6, 0, 0, 0x50011), (6, 0, 0, 0x7FFF0000)]
data = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", 4, ctypes.addressof(data)))
libc.prctl(38, 1, 0, 0, 0)
libc.prctl(22, 2, program, 0, 0)
real = [dry(("mkdir", b"/tmp/filtered"), 0o755), dry(("mkdirat", -100, b"/etc"), 0o755)]
print(os.getpid(), *real, flush=True)
time.sleep(100)
"""


def test_seccomp_filters_are_asked_in_a_dry_run(guests: Guests, tmp_path: Path) -> None:
    """A filter that answers mkdir() itself, and lets other calls through; as the real ones end.

    The case of such a run can be asked other questions.
    """
    guest, case = guests("6.12"), str(tmp_path / "mkdir.kwhy")
    with lab.open_link(guest) as link:
        stream = link.stream("spawn", timeout=60, argv=["python3", "-c", FILTERED])
        with stream:
            said = next(message.data for message in stream if message.kind == "out").split()
            pid, *real = map(int, said)
            caller = Caller(open_kernel(LiveEvidence(link)), task=pid)
            calls = ('mkdir("/tmp/filtered", 0755)', 'mkdirat(AT_FDCWD, "/etc", 0755)')
            outcomes = [dry_run(caller, text) for text in calls]
            words = ["--lab", guest.name, "--task", str(pid), "--syscall", calls[0]]
            saved = kwhy("call", *words, "--save", case, "--json")
    again = kwhy("call", "--case", case, "--json")
    other = kwhy("call", "--case", case, "int_sqrt(81)", "--json")
    assert ["-17", "-17", "9"] == [o.verdict["ret"]["value"] for o in (saved, again, other)]
    assert [-17, -17] == real  # EEXIST: the filter's, the file system's
    assert real == [int(outcome.result) for outcome in outcomes]
    functions = [outcome.function.name for outcome in outcomes]
    assert ["__secure_computing", "__x64_sys_mkdirat"] == functions


def test_the_same_answer_live_from_a_dump_and_from_cases(guests: Guests, tmp_path: Path) -> None:
    """ret and because are equal on --lab, --core and --case, and the JSON is the schema's."""
    guest = guests("6.12")
    core, case = tmp_path / "guest.core", tmp_path / "call.kwhy"
    question = ["ring_buffer_empty_cpu(global_trace.array_buffer.buffer, 0)", "--why", "--json"]
    live = kwhy("call", "--lab", guest.name, *question, "--save", str(case))
    guest.dump(core)
    dump = kwhy("call", "--core", str(core), *question)
    saved = kwhy("call", "--case", str(case), *question)
    explained = kwhy("explain", str(case), "--json")
    core.unlink()
    for outcome in (live, dump, saved, explained):
        assert 0 == outcome.status, outcome.err
        validate(outcome.verdict)
        assert {"value": "1", "type": "bool"} == outcome.verdict["ret"]
        assert live.verdict["because"] == outcome.verdict["because"]
    assert "cpu_buffer->reader_page->read" in json.dumps(live.verdict["because"])


def test_a_guest_that_cannot_answer(guests: Guests, tmp_path: Path) -> None:
    """While QEMU holds the guest still, its memory is read from outside; the answer is the same."""
    guest = guests("6.12")
    question = ["find_task_by_pid_ns(1, &init_pid_ns)", "--why", "--json"]
    case = tmp_path / "paused.kwhy"
    before = kwhy("call", "--lab", guest.name, *question)
    with contextlib.closing(guest.qmp()) as qmp:
        qmp.command("stop")
    try:
        paused = kwhy("call", "--lab", guest.name, *question, "--save", str(case))
        socket = kwhy("call", "--core", str(guest.control_socket), *question)
        stack = kwhy("hang", "--lab", guest.name, "2")
    finally:
        with contextlib.closing(guest.qmp()) as qmp:
            qmp.command("cont")
    explained = kwhy("explain", str(case), "--json")
    for outcome in (paused, socket, explained):
        assert 0 == outcome.status, outcome.err
        assert before.verdict["ret"] == outcome.verdict["ret"]
        assert before.verdict["because"] == outcome.verdict["because"]
        assert any("QEMU's control socket" in n for n in outcome.verdict["evidence"]["notes"])
    assert "kthreadd()+0x" in stack.out
    assert kwhy("call", "--lab", guest.name, *question).verdict["evidence"]["notes"]


BUFFER = "global_trace.array_buffer.buffer"
CONSUME = f"ring_buffer_consume({BUFFER}, 0, &stamp, &lost)"
TRACING = "/sys/kernel/tracing"


def test_a_call_that_writes_changes_nothing(guests: Guests) -> None:
    """Consuming an event, offline: every byte that the code wrote is as it was in the guest.

    So are the ring buffer's data pages and what the trace file shows. Bytes that change also during
    a call that writes nothing are no evidence; none of the ring buffer's may be among them. That
    the comparison sees a difference is shown by consuming an event for real.
    """
    guest = guests("6.12")
    with lab.open_link(guest) as link:
        shell(link, f"echo > {TRACING}/trace")
        shell(link, f"for i in 1 2 3 4 5; do echo hello $i > {TRACING}/trace_marker; done")
        caller = Caller(open_kernel(LiveEvidence(link)))
        outcome = caller.call(CONSUME)
        assert outcome.returned, outcome.end
        assert int(outcome.result.value_())
        places = [(c.address, len(c.before)) for c in outcome.changes]
        buffer, data = _ring_buffer(caller)

        shown = shell(link, f"cat {TRACING}/trace")
        watched = places + data
        first = _bytes(link, watched)
        kwhy("call", "--lab", guest.name, f"ring_buffer_empty_cpu({BUFFER}, 0)", "--json")
        second = _bytes(link, watched)
        called = kwhy("call", "--lab", guest.name, CONSUME, "--json")
        third = _bytes(link, watched)
        after = shell(link, f"cat {TRACING}/trace")
        shell(link, f"head -n 1 {TRACING}/trace_pipe")
        real = _bytes(link, watched)
        shell(link, f"echo > {TRACING}/trace")

    assert called.verdict["ret"]["value"] not in ("0x0", "0")
    assert {w["address"] for w in called.verdict["writes"]} & {f"{a:#x}" for a, _ in buffer}
    assert shown.count(b"hello") == 5
    assert shown == after
    still = {place for place in first if first[place] == second[place]}
    assert {(place, second[place]) for place in still} == {(place, third[place]) for place in still}
    own = {(a, n) for a, n in places if any(b <= a < b + size for b, size in buffer)}
    assert own and own | set(data) <= still
    assert any(second[place] != real[place] for place in own)


def _ring_buffer(caller: Caller) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(address, size) of CPU 0's ``struct ring_buffer_per_cpu`` and pages, and of their data."""
    import drgn

    program = caller.program
    each = program["global_trace"].array_buffer.buffer.buffers[0]
    pages, node = [each.reader_page], each.pages
    while not (pages[1:] and node == each.pages):
        pages.append(drgn.container_of(node, "struct buffer_page", "list"))
        # The low bits of a pointer are flags (RB_FLAG_MASK, kernel/trace/ring_buffer.c).
        node = drgn.Object(program, node.type_, node.next.value_() & ~3)
    size = drgn.sizeof(program.type("struct buffer_page"))
    control = [(int(each), drgn.sizeof(each.type_.type))] + [(int(page), size) for page in pages]
    return control, [(int(page.page), 4096) for page in pages]


def _bytes(link: Link, places: list[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
    """What /proc/kcore says now."""
    fresh = LiveEvidence(link)
    fresh.prefetch(places)
    return {place: fresh.read(*place) for place in places}


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["nosuch(1)"], 2, "no function nosuch"),
        (["init_task(1)"], 2, "is data"),
        (["int_sqrt()"], 2, "takes 1 argument"),
        (["int_sqrt(1"], 2, "^"),
        (["int_sqrt(1)", "--cpu", "99"], 2, "--cpu 99"),
        (["int_sqrt(1)", "--task", "99999"], 2, "no task 99999"),
        (["msleep(1)"], 1, ""),
        (["start_kernel()"], 2, "__init"),
        (["--task", "1", "--syscall", "opentat(1)"], 2, "openat"),
        (["--task", "1", "--syscall", 'read("x", 1, 2)'], 2, "not a string"),
    ],
)
def test_bad_questions_end_in_words(
    guests: Guests, words: list[str], status: int, text: str
) -> None:
    """One error that says what is wrong, and the contract's exit status."""
    outcome = kwhy("call", "--lab", guests("6.12").name, *words)
    assert (status, True) == (outcome.status, text in outcome.err)
