"""The agent in real guests: it records, and leaves everything as it was, however it ends."""

import contextlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from kwhy import lab
from kwhy.errors import FeatureError, LinkError, UsageError
from kwhy.lab.target import open_link, start
from kwhy.link import Link, Message

SERIES = ("5.10", "6.1", "6.12", "7")
TRACEFS = "/sys/kernel/tracing"

#: What somebody else has set up, all over tracefs, none of it in use at the top level.
OTHERS = f"""
cd {TRACEFS}
mkdir -p instances/mine
echo 'ret == -5' > instances/mine/events/raw_syscalls/sys_exit/filter
echo 1 > instances/mine/events/raw_syscalls/sys_exit/enable
echo 'p:mine/probe vfs_read' >> kprobe_events
echo 'r:mine/back vfs_read $retval' >> kprobe_events
echo 1 > instances/mine/events/mine/probe/enable
echo 'prev_pid == 1' > events/sched/sched_switch/filter
echo boot > trace_clock
echo 2000 > buffer_size_kb
echo 1 > options/sym-offset
echo 0 > options/overwrite
"""

#: All the state that must not change, as text. The trace buffers themselves are not part of it.
STATE = f"""
cd {TRACEFS}
grep -s "" current_tracer set_event set_event_pid set_ftrace_pid set_ftrace_filter kprobe_events \
    set_ftrace_notrace set_graph_function tracing_on trace_clock buffer_size_kb dynamic_events \
    max_graph_depth tracing_cpumask trace_options events/sched/sched_switch/filter \
    instances/mine/set_event instances/mine/events/raw_syscalls/sys_exit/filter \
    instances/mine/current_tracer instances/mine/tracing_on
ls instances
grep tracefs /proc/mounts
"""

#: Shell function: the processes whose command line is the arguments.
WHO = """
who() { for p in /proc/[0-9]*; do
  [ "$(tr '\\0' ' ' < $p/cmdline 2>/dev/null)" = "$* " ] && echo ${p#/proc/}; done; true; }
"""


def shell(link: Link, script: str) -> str:
    """Output of a script that must succeed."""
    messages = list(link.stream("spawn", timeout=60, argv=["sh", "-c", script]))
    out = b"".join(message.data for message in messages if message.kind in ("out", "err"))
    assert 0 == messages[-1].header["status"]["code"], out
    return out.decode()


@dataclass
class Box:
    """A guest with an agent that only looks on."""

    guest: lab.Guest
    observer: Link

    def state(self) -> list[str]:
        """The tracing state, line by line."""
        return shell(self.observer, STATE).splitlines()

    def agent(self) -> Link:
        """A fresh agent."""
        return open_link(self.guest)


@pytest.fixture(scope="module")
def box(request: pytest.FixtureRequest) -> Iterator[Box]:
    """One guest of a series for all its tests, in which somebody else has set up tracing."""
    with start(request.param) as guest, open_link(guest) as observer:
        shell(observer, OTHERS)
        yield Box(guest, observer)


@pytest.fixture
def link(box: Box) -> Iterator[Link]:
    """A fresh agent; at its end the state must be what it was before."""
    before = box.state()
    with box.agent() as made:
        yield made
    wait_gone(box, made.hello["pid"])
    assert before == box.state()


every_series = pytest.mark.parametrize("box", SERIES, indirect=True)
newest = pytest.mark.parametrize("box", ["6.12"], indirect=True)
oldest = pytest.mark.parametrize("box", ["5.10"], indirect=True)


def record(link: Link, *argv: str, **params: Any) -> dict[str, list[Message]]:
    """All messages of a recording, by kind."""
    found: dict[str, list[Message]] = {}
    if argv:
        params["argv"] = list(argv)
    for message in link.stream("record", timeout=120, **params):
        found.setdefault(message.kind, []).append(message)
    return found


def page_count(messages: dict[str, list[Message]]) -> int:
    """The number of pages, each checked to be whole."""
    total = 0
    for message in messages.get("pages", []):
        assert len(message.data) == message.header["count"] * message.header["size"]
        total += message.header["count"]
    return total


@every_series
def test_every_way_to_record(link: Link) -> None:
    """Function trace, probes and function graph: pages, formats, output, status; all put back."""
    function_trace(link)
    probes_of_our_own(link)
    function_graph(link)


def function_trace(link: Link) -> None:
    """The default recording of a failing command."""
    found = record(link, "cat", "/nonexistent")
    [armed], [end] = found["armed"], found["end"]
    assert armed.header["instance"]
    assert {} == armed.header["refused"]
    assert {"raw_syscalls/sys_enter", "raw_syscalls/sys_exit"} == set(json.loads(armed.data))
    assert page_count(found) > 50
    assert page_count(found) == end.header["pages"]
    assert 1 == end.header["status"]["code"]
    assert b"No such file" in b"".join(message.data for message in found["err"])
    assert "cat" in [task["comm"] for task in end.header["tasks"]]
    assert (True, [], {}, "exit") == tuple(
        end.header[key] for key in ("restored", "problems", "lost", "ended")
    )


def probes_of_our_own(link: Link) -> None:
    """Probes land in our group; one that the kernel refuses is told with its reason."""
    probes = ["p:in vfs_read", "r:out vfs_read $retval", "p:bad no_such_function_at_all"]
    found = record(link, "cat", "/proc/version", tracer="nop", probes=probes)
    [armed] = found["armed"]
    ours = {probe["name"]: probe for probe in armed.header["probes"]}
    assert [True, True, False] == [ours[name]["ok"] for name in ("in", "out", "bad")]
    assert ours["bad"]["error"]
    formats = json.loads(armed.data)
    group = armed.header["group"]
    assert f"ID: {ours['in']['id']}" in formats[f"{group}/in"]
    assert page_count(found) > 0
    assert 0 == found["end"][0].header["status"]["code"]


def function_graph(link: Link) -> None:
    """In an instance where the kernel can; else the top level is borrowed and given back."""
    found = record(link, "cat", "/nonexistent", tracer="function_graph")
    features = link.hello["features"]
    assert features["graph_in_instance"] is found["armed"][0].header["instance"]
    assert page_count(found) > 50
    assert found["end"][0].header["restored"]


@oldest
def test_somebody_else_is_tracing(box: Box, link: Link) -> None:
    """The borrowed top level is refused, naming the other user; an instance works beside him."""
    uses = [
        ("echo function > current_tracer", "echo nop > current_tracer", "current_tracer is func"),
        (
            "echo 1 > events/sched/sched_wakeup/enable",
            "echo 0 > events/sched/sched_wakeup/enable; echo > trace",
            "event sched:sched_wakeup is enabled",
        ),
        ("echo vfs_read > set_ftrace_filter", "echo > set_ftrace_filter", "set_ftrace_filter"),
        ("echo hello > trace_marker", "echo > trace", "echo > /sys/kernel/tracing/trace"),
    ]
    for begin, finish, words in uses:
        shell(box.observer, f"cd {TRACEFS}; {begin}")
        during = box.state()
        with pytest.raises(FeatureError, match="somebody else is tracing") as caught:
            record(link, "true", tracer="function_graph")
        assert words in str(caught.value)
        assert "tracer-busy" == caught.value.feature
        assert during == box.state()
        shell(box.observer, f"cd {TRACEFS}; {finish}; echo > trace")
    shell(box.observer, f"echo 1 > {TRACEFS}/events/sched/sched_wakeup/enable")
    assert page_count(record(link, "true", tracer="nop")) > 0
    shell(box.observer, f"cd {TRACEFS}; echo 0 > events/sched/sched_wakeup/enable; echo > trace")


@newest
def test_command_not_found(link: Link) -> None:
    """Nothing is armed for a command that does not exist."""
    with pytest.raises(UsageError, match="no command nonsense-command"):
        record(link, "nonsense-command")
    with pytest.raises(UsageError, match="no process"):
        record(link, pid=2**22 + 1)


@newest
def test_a_command_that_dies(link: Link) -> None:
    """A command killed in the middle is an end like any other."""
    found = record(link, "sh", "-c", "cat /nonexistent; kill -9 $$", tracer="nop")
    assert 9 == found["end"][0].header["status"]["signal"]


@newest
def test_the_first_instruction_is_in_the_trace(link: Link) -> None:
    """The execve of the command itself is recorded: a failing one has its errno."""
    shell(link, "echo nothing > /root/text; chmod 755 /root/text; printf '\\177ELF' > /root/elf")
    shell(link, "chmod 755 /root/elf")
    found = record(link, "./elf", tracer="nop")
    assert 8 == found["end"][0].header["status"]["exec_errno"]  # ENOEXEC
    assert page_count(found) > 0


@newest
def test_timeout_kills_the_whole_tree(link: Link) -> None:
    """A command over its time is killed with all descendants, also one in another session."""
    script = "setsid sleep 4321 & sleep 4321"
    found = record(link, "sh", "-c", script, tracer="nop", seconds=1)
    end = found["end"][0].header
    assert ("timeout", True, 9) == (end["ended"], end["timed_out"], end["status"]["signal"])
    assert any("longer than the timeout" in note for note in end["notes"])
    assert "" == shell(link, WHO + "who sleep 4321")


@newest
def test_orphans_are_followed(link: Link) -> None:
    """Recording goes on while descendants live, and ends with the last of them."""
    script = "(sleep 0.5; cat /nonexistent) & exit 7"
    found = record(link, "sh", "-c", script, tracer="nop", linger=30)
    end = found["end"][0].header
    assert ("exit", 7) == (end["ended"], end["status"]["code"])
    assert b"nonexistent" in b"".join(message.data for message in found["err"])
    assert {"sh", "sleep"} <= {task["comm"] for task in end["tasks"]}


@newest
def test_daemons_are_left_alone(link: Link) -> None:
    """What outlives the command for too long is named and left running."""
    found = record(link, "sh", "-c", "sleep 1234 >/dev/null 2>&1 &", tracer="nop", linger=0.2)
    end = found["end"][0].header
    assert "linger" == end["ended"]
    assert "still ran" in end["notes"][0]
    shell(link, WHO + "kill $(who sleep 1234)")


@newest
def test_following_a_process(box: Box, link: Link) -> None:
    """A running process with its threads and children, until it ends; new ones are followed too."""
    script = (
        "import os,threading,time\n"
        "threading.Thread(target=time.sleep,args=(3,)).start()\n"
        "os.fork() or time.sleep(3)\n"
        "os.write(1,b'up')\ntime.sleep(2)\nos.fork()\nos.system('cat /nonexistent')\n"
    )
    with box.observer.stream("spawn", timeout=60, argv=["python3", "-c", script]) as target:
        pid = next(target).header["pid"]
        assert b"up" == next(target).data
        found = record(link, pid=pid, tracer="nop")
        end = found["end"][0].header
        assert ("exit", None) == (end["ended"], end["status"])
        tasks = end["tasks"]
        assert len({task["tid"] for task in tasks if task["tgid"] == pid}) >= 2
        assert [] != [task for task in tasks if task["ppid"] == pid]
    assert page_count(found) > 0


@newest
def test_stop_keeps_what_was_recorded(link: Link) -> None:
    """A recording that is stopped early still gives its pages and its end."""
    kinds = []
    with link.stream("record", timeout=60, argv=["sleep", "1000"], tracer="nop") as stream:
        for message in stream:
            kinds.append(message.kind)
            if message.kind == "pages":
                stream.stop()
    assert "stop" == message.header["ended"]
    assert message.header["restored"]
    assert {"armed", "pages", "drained", "end"} <= set(kinds)


@newest
def test_leaving_in_the_middle(link: Link) -> None:
    """Ctrl-C at the desk: when the stream is closed, everything is already put back."""
    with link.stream("record", timeout=60, argv=["sleep", "1000"]) as stream:
        for message in stream:
            if message.kind == "armed":
                break


KEPT: dict[str, Any] = {"tracer": "nop", "hold": 60, "others": {"seconds": 60}}


@newest
def test_who_leaves_is_kept_until_it_is_let_go(link: Link) -> None:
    """A process that ends badly: its pages and its user memory have come, its parent waits."""
    argv = ["sh", "-c", "cat /nonexistent; true | true; echo on; exit 4"]
    kinds: list[str] = []
    with link.stream("record", timeout=120, argv=argv, **KEPT) as stream:
        for message in stream:
            kinds.append(message.kind)
            if message.kind == "leaving":
                stat = shell(link, f"cat /proc/{message.header['pid']}/stat")
                assert " (cat) t " in stat
                assert {"pages", "user", "err"} <= set(kinds)
                assert "out" not in kinds
                stream.let_go(message.header["tids"][0])
            elif message.kind == "drained":
                assert message.header["held"]
                stream.stop()
    assert 1 == kinds.count("leaving")
    assert "out" in kinds
    assert 4 == message.header["status"]["code"]


@newest
def test_when_the_agent_is_killed_who_is_kept_goes_on(box: Box) -> None:
    """And all that wait for it."""
    link = box.agent()
    path = f"/tmp/on-{link.hello['pid']}"
    argv = ["sh", "-c", f"cat /nonexistent; echo > {path}"]
    with contextlib.suppress(LinkError):
        for message in link.stream("record", timeout=120, argv=argv, **KEPT):
            if message.kind == "leaving":
                assert "no" in shell(box.observer, f"ls {path} 2>&1 || echo no")
                shell(box.observer, f"kill -9 {link.hello['pid']}")
    link.close()
    wait_gone(box, link.hello["pid"])
    wait = f"i=0; until [ -e {path} ]; do i=$((i+1)); [ $i -lt 200 ] || exit 1; sleep 0.05; done"
    shell(box.observer, wait)


@newest
def test_hanging_up_in_the_middle(box: Box) -> None:
    """The link dies without a word: the agent, or its watchdog, puts everything back."""
    before = box.state()
    link = box.agent()
    agent = link.hello["pid"]
    stream = link.stream("record", timeout=60, argv=["sleep", "1000"])
    while next(stream).kind != "armed":
        pass
    link._on_close()  # the socket, without a word
    wait_gone(box, agent)
    assert before == box.state()


@newest
def test_lost_events_are_told(link: Link) -> None:
    """A buffer too small for what happens: the loss is counted."""
    argv = ["dd", "if=/dev/zero", "of=/dev/null", "bs=1", "count=3000"]
    found = record(link, *argv, buffer_kb=8)
    assert sum(found["end"][0].header["lost"].values()) > 1000


@newest
def test_filters(link: Link) -> None:
    """Function and event filters narrow the recording; what the kernel refuses is listed."""
    wide = record(link, "cat", "/nonexistent")
    narrow = record(
        link,
        *("cat", "/nonexistent"),
        filter=["do_sys_openat2", "no_such_function", "vfs_open"],
        event_filters={"raw_syscalls/sys_exit": "ret < 0"},
    )
    assert ["no_such_function"] == narrow["armed"][0].header["refused"]["filter"]
    assert 0 < page_count(narrow) * 5 < page_count(wide)
    with pytest.raises(FeatureError, match="none of the 1 functions"):
        record(link, "true", filter=["no_such_function"])


@newest
def test_memory_and_blobs(link: Link) -> None:
    """Live code, BTF, symbols, notes: what the kernel model is made of."""
    symbols = link.blob("kallsyms")
    assert symbols is not None
    [line] = [line for line in symbols.splitlines() if line.endswith(b" T vfs_read")]
    address = int(line.split()[0], 16)
    code, nothing = link.read_memory([(address, 64), (0xFFFF_8000_0000_0000 - 4096, 16)])
    assert code is not None and len(code) == 64
    assert nothing is None
    btf = link.blob("btf/vmlinux")
    assert btf is not None and btf[:2] == b"\x9f\xeb"
    notes, info = link.blob("notes"), link.blob("vmcoreinfo")
    assert notes is not None and bytes.fromhex(link.hello["kernel"]["build_id"]) in notes
    assert info is not None and b"KERNELOFFSET" in info
    sys_enter = link.blob("format/raw_syscalls/sys_enter")
    assert sys_enter is not None and b"name: sys_enter" in sys_enter
    kmsg = link.blob("kmsg")
    assert kmsg is not None and b"Linux version" in kmsg


def wait_gone(box: Box, pid: int) -> None:
    """Until the agent is gone and its journal with it (bounded, in the guest)."""
    shell(
        box.observer,
        f"i=0; while [ -e /proc/{pid} ] || [ -e /run/kwhy/agent-{pid}.json ]; do "
        "i=$((i+1)); [ $i -lt 600 ] || exit 1; sleep 0.05; done",
    )


def kill_at_random(box: Box, count: int) -> None:
    """kill -9 agents at random moments of recordings; compare the state after each."""
    dice = random.Random(f"{box.guest.release} {count}")
    before = box.state()
    ways: list[dict[str, Any]] = [
        {"tracer": "function"},
        {"tracer": "nop", "probes": [f"p:a{i} vfs_read+0" for i in range(8)]},
        {"tracer": "function_graph"},
        {"tracer": "function", "probes": ["p:a vfs_read", "r:b vfs_read $retval"]},
    ]
    for number in range(count):
        way = ways[number % len(ways)]
        longest = 1.0 if way["tracer"] == "nop" else 7.0
        link = box.agent()
        victim = link.hello["pid"]
        delay = dice.uniform(0, longest)
        killer = box.observer.stream(
            "spawn", timeout=60, argv=["sh", "-c", f"sleep {delay:.3f}; kill -9 {victim}"]
        )
        assert "started" == next(killer).kind
        with contextlib.suppress(LinkError):
            while True:
                record(link, "cat", "/nonexistent", **way)
        list(killer)
        link.close()
        wait_gone(box, victim)
        assert before == box.state(), f"kill {number} after {delay:.3f} s of {way}"


@pytest.mark.parametrize("box", ["5.10", "6.12"], indirect=True)
def test_kills(box: Box) -> None:
    """kill -9 of the agent at random moments leaves the state as it was."""
    kill_at_random(box, 4)


@pytest.mark.slow
@every_series
def test_fifty_kills(box: Box) -> None:
    """The same, fifty times on each kernel."""
    kill_at_random(box, 50)


@newest
def test_tracefs_that_nobody_mounted(box: Box) -> None:
    """It is mounted for the agent alone, visible to nobody; a kill is repaired all the same."""
    before = box.state()
    shell(box.observer, f"umount /sys/kernel/debug/tracing 2>/dev/null; umount {TRACEFS}")
    link = box.agent()
    victim = link.hello["pid"]
    assert "nobody has mounted tracefs" in link.hello["notes"][0]
    found = record(link, "grep", "tracefs", "/proc/mounts", tracer="nop", probes=["p vfs_read"])
    assert 1 == found["end"][0].header["status"]["code"]
    assert page_count(found) > 0
    stream = link.stream("record", timeout=60, argv=["sleep", "1"], probes=["p vfs_read"])
    while next(stream).kind != "armed":
        pass
    shell(box.observer, f"kill -9 {victim}")
    link.close()
    wait_gone(box, victim)
    shell(box.observer, f"! grep tracefs /proc/mounts; mount -t tracefs tracefs {TRACEFS}")
    assert [line for line in before if "/debug/" not in line] == [
        line for line in box.state() if "/debug/" not in line
    ]


@newest
def test_the_next_agent_repairs(box: Box) -> None:
    """Agent and watchdog killed together: the next agent to start puts things back, and says so."""
    before = box.state()
    link = box.agent()
    victim = link.hello["pid"]
    stream = link.stream("record", timeout=60, argv=["sleep", "1000"], tracer="nop")
    while next(stream).kind != "armed":
        pass
    shell(
        box.observer,
        f"for p in $(grep -l '^PPid:.{victim}$' /proc/[0-9]*/status | cut -d/ -f3); do "
        f'[ $(readlink /proc/$p/exe) = $(readlink /proc/{victim}/exe) ] && dogs="$dogs $p"; '
        f"done; kill -9 {victim} $dogs",
    )
    assert before != box.state()
    with box.agent() as next_link:
        assert [f"restored after agent-{victim}"] == next_link.hello["repaired"]
        assert before == box.state()
    shell(box.observer, WHO + "kill $(who sleep 1000)")
