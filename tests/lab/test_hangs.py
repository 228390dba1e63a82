"""``kwhy hang`` against the truth of tasks that hang in known ways."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.lab.desk import Outcome, kwhy, own_guest, run_in

from kwhy import lab
from kwhy.case.vmcore import VmcoreEvidence
from kwhy.kernel.model import open_kernel
from kwhy.lab.hangs import FILE, GRACE, REPORT, SCENARIOS, Scenario, run, start, stocks
from kwhy.lab.hangs.stocks import STOCKS, Stock
from kwhy.link import Link
from kwhy.report.schema import validate

pytestmark = pytest.mark.lab


def hang(guest: lab.Guest, scenarios: Iterable[Scenario]) -> dict[str, int]:
    """Put the processes of ``scenarios`` into their waits; their numbers by name."""
    chosen = list(scenarios)
    tasks = [task for scenario in chosen for task in scenario.tasks]
    files = [file for scenario in chosen for file in scenario.files]
    with lab.open_link(guest) as link:
        out = start(link, guest.release, tasks, files)
    return {line.split()[0]: int(line.split()[1]) for line in out.splitlines()}


class Answer:
    """An answer in the names of the processes."""

    def __init__(self, outcome: Outcome, names: dict[str, int]) -> None:
        self.verdict: dict[str, Any] = outcome.verdict
        validate(self.verdict)
        self.names = {number: name for name, number in names.items()}
        self.tasks = {task["tid"]: task for task in self.verdict["tasks"]}

    def name(self, tid: int) -> str:
        known = self.names.get(tid)
        return known or str(self.tasks[tid]["comm"]).split("/")[0]

    def wait(self, name: str, owners: Sequence[str]) -> dict[str, Any]:
        """What a process waits for; of several with the name the one that these hold up."""
        waits: list[dict[str, Any]] = [
            self.verdict["waits"][task["waits_for"]]
            for task in self.verdict["tasks"]
            if name == self.name(task["tid"]) and task["waits_for"] is not None
        ]
        fitting = [w for w in waits if list(owners) == [self.name(t) for t in w["owners"]]]
        return (fitting or waits or [{}])[0]

    def rings(self, key: str) -> set[frozenset[str]]:
        return {frozenset(map(self.name, ring)) for ring in self.verdict.get(key, ())}

    def waiting(self, kind: str) -> set[str]:
        """Who is behind the findings of a kind."""
        return {
            self.name(tid)
            for root in self.verdict["roots"]
            if root["kind"] == kind
            for tid in root["waiting"]
        }


def judge(answer: Answer, scenarios: Sequence[Scenario | Stock], live: bool = True) -> list[str]:
    """What is wrong with an answer, in words: missing and false edges, cycles, names.

    ``live``: a target that was looked at twice.
    """
    wrong = []
    for scenario in scenarios:
        for edge in scenario.edges:
            wait = answer.wait(edge.waiter, edge.owners)
            owners = tuple(answer.name(tid) for tid in wait.get("owners", ()))
            far = tuple(sorted(answer.name(tid) for tid in wait.get("any_of", ())))
            found = (wait.get("kind"), owners, far)
            ends = far if edge.any_of is None else tuple(sorted(edge.any_of))
            right = (edge.kind, edge.owners, ends)
            if right != found:
                wrong.append(f"{edge.waiter}: {found} instead of {right}")
            if edge.object is not None and edge.object != wait.get("object"):
                wrong.append(f"{edge.waiter}: {wait.get('object')!r} instead of {edge.object}")
    cycles = {cycle for scenario in scenarios for cycle in scenario.cycles}
    if cycles != answer.rings("cycles"):
        wrong.append(f"cycles {answer.rings('cycles')} instead of {cycles}")
    texts = " ".join(root["text"] for root in answer.verdict["roots"])
    wrong += [f"{s.name}: no {s.ends!r}" for s in scenarios if s.ends not in texts]
    likely = {cycle for scenario in scenarios for cycle in scenario.possible}
    if likely != answer.rings("possible"):
        wrong.append(f"possible cycles {answer.rings('possible')} instead of {likely}")
    gone = {name for scenario in scenarios for name in scenario.gone}
    if gone != answer.waiting("gone"):
        wrong.append(f"leaked locks of {answer.waiting('gone')} instead of {gone}")
    lost = {name for scenario in scenarios for name in scenario.lost if live}
    if lost != answer.waiting("lost"):
        wrong.append(f"lost wake-ups of {answer.waiting('lost')} instead of {lost}")
    return wrong


def test_the_report_live_dumped_and_saved(tmp_path: Path) -> None:
    """The file, both locks, both tasks and the victim; the same from the dump and from the case."""
    with own_guest("6.12", "report") as guest:
        names = hang(guest, [REPORT])
        live = kwhy("hang", "--lab", guest.name, "--json", "--save", str(tmp_path / "it.kwhy"))
        core = tmp_path / "vmcore"
        guest.dump(core)
    assert 0 == live.status, live.err
    answer = Answer(live, names)
    assert [] == judge(answer, [REPORT])
    ruby, ruby2 = names["ruby"], names["ruby2"]
    headline = f"{ruby} ruby and {ruby2} ruby2 deadlock on {FILE}; 1 more task waits behind them"
    assert headline == answer.verdict["summary"]
    assert "observed" == answer.verdict["confidence"]
    assert f'"{FILE}"' == next(t for t in answer.tasks.values() if t["comm"] == "rm")["decoded"][0]
    taken = {
        (w["object"], answer.name(t["tid"]), t["function"])
        for w in answer.verdict["waits"]
        for t in w.get("taken", ())
    }
    assert {(FILE, "ruby", "hang_truncate"), ("", "ruby2", "hang_splice_write")} == taken
    saved = kwhy("explain", str(tmp_path / "it.kwhy"), "--json")
    assert live.verdict == saved.verdict
    dumped = kwhy("hang", "--core", str(core), "--json")
    assert _timeless(live.verdict) == _timeless(dumped.verdict)
    core.unlink()


def _timeless(verdict: dict[str, Any]) -> Any:
    """Without what goes on changing while tasks hang."""
    bare = json.loads(json.dumps(verdict))
    for task in bare["tasks"]:
        del task["seconds"]
    return bare


#: Many new tasks: one of them gets the memory of a task that ended with a lock.
REBIRTH = ("./hang_tasks", "reborn:crowd=200,sleep=0")


@pytest.mark.slow
def test_every_scenario(series: str, tmp_path: Path) -> None:
    """All edges, no false edge and no false cycle: live, with and without debug symbols, dumped."""
    with own_guest(series, "hangs") as guest:
        names = hang(guest, SCENARIOS)
        with lab.open_link(guest) as link:
            run(link, *REBIRTH)
        ended = {task.split(":")[0] for s in SCENARIOS for task in s.tasks if "exit=" in task}
        everything = [str(number) for name, number in names.items() if name not in ended]
        live = kwhy("hang", "--lab", guest.name, "--json", *everything)
        bare = kwhy("hang", "--lab", guest.name, "--json", "--debuginfo", "none", *everything)
        core = tmp_path / "vmcore"
        guest.dump(core)
    assert [] == judge(Answer(live, names), SCENARIOS)
    assert [] == judge(Answer(bare, names), SCENARIOS)
    dumped = kwhy("hang", "--core", str(core), "--json", *everything)
    assert [] == judge(Answer(dumped, names), SCENARIOS, live=False)
    core.unlink()


def descendants(link: Link, numbers: list[str]) -> list[str]:
    """Processes, their children, and so on."""
    if not numbers:
        return []
    lists = [f"/proc/{number}/task/{number}/children" for number in numbers]
    _status, out, _err = run_in(link, "cat", *lists)
    return numbers + descendants(link, out.split())


@pytest.mark.slow
def test_every_stock_scenario(series: str, tmp_path: Path) -> None:
    """Far ends of pipes, sockets, daemons, devices and the rest: live and dumped."""
    chosen = [stock for stock in STOCKS if not (stock.module and series == "5.10")]
    with own_guest(series, "stock") as guest:
        with lab.open_link(guest) as link:
            names = stocks.start(link, [stock.name for stock in chosen])
            everything = descendants(link, list(map(str, names.values())))
        live = kwhy("hang", "--lab", guest.name, "--json", *everything)
        core = tmp_path / "vmcore"
        guest.dump(core)
    assert [] == judge(Answer(live, names), chosen)
    bare = [] if series == "5.10" else ["--debuginfo", "none"]  # it has no types in memory
    dumped = kwhy("hang", "--core", str(core), "--json", *bare, *everything)
    assert [] == judge(Answer(dumped, names), chosen)
    core.unlink()


@pytest.mark.slow
def test_reader_holds_up_a_grace_period(series: str) -> None:
    """Who waits for RCU waits for the reader that was preempted; kwhy itself does not."""
    if series == "5.10":
        pytest.skip("its readers are not preempted")
    with own_guest(series, "grace") as guest:
        names = hang(guest, [GRACE])
        live = kwhy("hang", "--lab", guest.name, "--json", *map(str, names.values()))
    assert [] == judge(Answer(live, names), [GRACE])


@pytest.mark.slow
def test_tasks_that_ran_when_the_kernel_was_dumped(series: str, tmp_path: Path) -> None:
    """The one on the CPU has a stack that begins there; the other one waits; drgn says the same."""
    import drgn
    from drgn.helpers.linux.pid import find_task

    with own_guest(series, "oncpu") as guest:
        with lab.open_link(guest) as link:
            copy = "setsid dd if=/dev/zero of=/dev/null bs=32M 2> /dev/null & echo $!;"
            _status, out, _err = run_in(link, "sh", "-c", f"{copy} {copy} sleep 3")
        core = tmp_path / "vmcore"
        guest.dump(core)
    tasks = kwhy("hang", "--core", str(core), "--json", *out.split()).verdict["tasks"]
    program = drgn.Program()
    program.set_core_dump(core)
    debug = open_kernel(VmcoreEvidence(core)).vmlinux
    assert debug is not None
    program.load_debug_info([debug])
    assert 2 == len(tasks)
    for task in tasks:
        trace = program.stack_trace(find_task(program, task["tid"]))
        theirs = [f.name for f in trace if not f.is_inline and not f.name.startswith("0x")]
        names = [frame["function"] for frame in task["stack"]]
        assert "R" == task["state"]
        assert "vfs_read" in names
        assert theirs == names
    core.unlink()


#: Functions on the stacks of the scenarios, watched at their entry.
WATCHED = (
    "ksys_write vfs_write ksys_read vfs_read do_unlinkat vfs_unlink down_write down_read down "
    "rwsem_down_write_slowpath rwsem_down_read_slowpath __down_common rt_mutex_slowlock futex_wait "
    "do_futex __futex_wait futex_wait_queue locks_lock_inode_wait pipe_read pipe_write "
    "anon_pipe_read anon_pipe_write wait_for_completion_state kernel_clone __wait_for_common "
    "__percpu_down_read percpu_rwsem_wait do_lock_file_wait fcntl_setlk do_fcntl "
    "__rt_mutex_slowlock_locked rt_mutex_slowlock_block schedule_timeout"
)
PLACES = ("di", "si", "dx", "cx", "r8", "r9")


def watch(guest: lab.Guest) -> None:
    """Record the argument registers at the entry of each function that this kernel has."""
    fetch = " ".join(f"a{number}=%{place}:x64" for number, place in enumerate(PLACES))
    script = "cd /sys/kernel/tracing; echo 8192 > buffer_size_kb; " + "".join(
        f"echo 'p:t/{name} {name} {fetch}' >> kprobe_events 2> /dev/null; "
        for name in WATCHED.split()
    )
    with lab.open_link(guest) as link:
        run_in(link, "sh", "-c", f"{script} echo 1 > events/t/enable")


def entered(guest: lab.Guest) -> dict[tuple[int, str], tuple[int, ...]]:
    """The arguments of the last call of each function by each task."""
    with lab.open_link(guest) as link:
        run_in(link, "sh", "-c", "echo 0 > /sys/kernel/tracing/events/t/enable")
        _status, out, _err = run_in(link, "cat", "/sys/kernel/tracing/trace")
    found = {}
    for line in out.splitlines():
        hit = re.match(r"\s*\S.*-(\d+)\s+\[\d+\].*: (\w+): \(\S+\) (a0=.*)", line)
        if hit:
            values = tuple(int(word.split("=")[1], 16) for word in hit[3].split())
            found[int(hit[1]), hit[2]] = values
    return found


@pytest.mark.slow
def test_recovered_arguments_are_what_was_passed(series: str) -> None:
    """No argument differs from what a probe at the function's entry saw."""
    with own_guest(series, "args") as guest:
        watch(guest)
        names = hang(guest, SCENARIOS)
        truth = entered(guest)
        ended = {task.split(":")[0] for s in SCENARIOS for task in s.tasks if "exit=" in task}
        pids = [str(number) for name, number in names.items() if name not in ended]
        answer = Answer(kwhy("hang", "--lab", guest.name, "--json", *pids), names)
    wrong, right, unknown = [], 0, 0
    for task in answer.verdict["tasks"]:
        for frame in task["stack"]:
            passed = truth.get((task["tid"], frame["function"]))
            if passed is None:
                continue
            for argument, value in zip(frame.get("args", ()), passed, strict=False):
                if not argument["value"] or argument.get("now"):
                    unknown += 1
                    continue
                told = int(argument["value"].replace("NULL", "0"), 0)
                if (told ^ value) & 0xFFFFFFFF:
                    wrong.append((frame["function"], argument, hex(value)))
                else:
                    right += 1
    print(f"{series}: {right} arguments right, {len(wrong)} wrong, {unknown} not known")
    assert [] == wrong
    assert right > 60
    assert right > 4 * unknown


LOAD = """
while :; do find /usr /lib -type f | head -500 | xargs cat; done > /dev/null 2>&1 &
while :; do tar cf - /usr/lib/python3* | cat | tar tf -; done > /dev/null 2>&1 &
while :; do dd if=/dev/zero of=/tmp/x bs=4k count=2000; sync; rm /tmp/x; done > /dev/null 2>&1 &
while :; do mkdir -p /tmp/d; touch /tmp/d/1; mv /tmp/d/1 /tmp/d/2; rm -r /tmp/d; done 2>/dev/null &
while :; do mkdir -p /tmp/d; touch /tmp/d/3; rm -f /tmp/d/3; done 2> /dev/null &
for i in 1 2 3; do (while :; do flock /tmp/l sleep 0.01; done) & done
mkdir -p /tmp/job; cp /usr/lib/python3*/[a-d]*.py /tmp/job
while :; do python3 -m compileall -q -f -j 2 /tmp/job; done > /dev/null 2>&1 &
modprobe -a loop ext4
truncate -s 64M /tmp/disk; mkfs.ext4 -q /tmp/disk; mkdir -p /tmp/ext
mount "$(losetup -f --show /tmp/disk)" /tmp/ext
for i in 1 2; do
    (while :; do dd if=/dev/zero of=/tmp/ext/$i bs=64k count=200 conv=fsync; rm /tmp/ext/$i; done) &
done > /dev/null 2>&1
ip link set lo up
cat > /tmp/net.py << 'END'
import socket, threading
def serve(one):
    while True:
        got = one.recv(65536)
        one.sendall(got[:1000])
listener = socket.create_server(("127.0.0.1", 0))
def accept():
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
threading.Thread(target=accept, daemon=True).start()
one = socket.create_connection(listener.getsockname())
while True:
    one.sendall(b"x" * 50000)
    one.recv(65536)
END
python3 /tmp/net.py &
sleep 60000
"""


@pytest.mark.slow
def test_a_busy_guest_has_no_deadlock(tmp_path: Path) -> None:
    """Tasks that contend for locks, pipes and the disk are never called a deadlock."""
    script = tmp_path / "load.sh"
    script.write_text(LOAD)
    with own_guest("6.12", "busy") as guest:
        with lab.open_link(guest) as link:
            link.put(script, "/root/load.sh")
            run_in(link, "sh", "-c", "setsid sh /root/load.sh > /dev/null 2>&1 & sleep 3")
        for _look in range(20):
            found = kwhy("hang", "--lab", guest.name, "--json")
            if found.out:
                assert ([], None) == (found.verdict["cycles"], found.verdict.get("possible"))
            else:
                assert "no task is stuck" in found.err
