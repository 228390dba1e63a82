"""What runs offline is what the processor runs: paths compared with the emulator's own record.

A process makes each call of a table twice: dry, offline, and then for real while the referee logs.
Every offline execution of a watched function must equal a real one, instruction by instruction.
"""

import json
from pathlib import Path

import pytest
from tests.lab.referee import executions, steps
from tests.lab.test_call_live import CALLS, PROGRAM, Waiting, shell
from tests.lab.test_incidents_paths import convene

from kwhy import lab
from kwhy.case.live import LiveEvidence
from kwhy.emulate import Caller, dry_run
from kwhy.flow.cfg import Code
from kwhy.kernel.model import open_kernel

pytestmark = [pytest.mark.lab, pytest.mark.slow]

WATCHED = (
    "check_kill_permission", "kill_pid_info_type", "kill_ok_by_cred", "cap_capable",
    "security_capable", "ns_capable_setid", "__sys_setuid", "make_kuid", "map_id_range_down",
    "from_kuid_munged", "ksys_dup3", "ksys_lseek", "ksys_read", "__x64_sys_fcntl", "do_fcntl",
    "__x64_sys_ioctl", "__x64_sys_getpriority", "__x64_sys_umask", "__x64_sys_personality",
    "__x64_sys_getppid", "__x64_sys_getuid", "__x64_sys_getegid", "__x64_sys_getpid",
    "build_open_flags", "inode_permission", "generic_permission", "may_open", "do_faccessat",
    "__x64_sys_chroot", "__x64_sys_chdir", "do_mkdirat", "do_unlinkat", "__sock_create",
    "do_epoll_create", "do_eventfd", "__x64_sys_getrandom", "__x64_sys_nanosleep", "find_vpid",
    "find_task_by_vpid", "idr_find", "getsid", "__x64_sys_getsid",
    "do_sched_getscheduler", "__x64_sys_sched_getscheduler", "__x64_sys_clock_getres",
)  # fmt: skip
# None with a string instruction: QEMU logs each of its rounds as a block of its own.
LEAST = 25


def test_offline_paths_were_executed(tmp_path: Path) -> None:
    """At least 25 functions ran offline exactly as they then ran for real."""
    for name, text in (("calls.json", json.dumps(CALLS)), ("caller.py", PROGRAM)):
        (tmp_path / name).write_text(text)
    log = tmp_path / "exec.log"
    with (
        convene("6.12", log, WATCHED) as court,
        lab.open_link(court.guest) as link,
        lab.open_link(court.guest) as other,
    ):
        for name in ("calls.json", "caller.py"):
            link.put(tmp_path / name, f"/tmp/{name}")
        argv = ["python3", "/tmp/caller.py", "/tmp/calls.json", "1000"]
        shell(other, "rm -f /tmp/go1000")
        with link.stream("spawn", timeout=60, argv=argv) as stream:
            started = next(message for message in stream if message.kind == "out")
            waiting = Waiting(int(started.data), 1000, stream, other)
            offline = _offline(waiting)
            trace = court.referee.watch(lambda: _go(waiting))
        agreed, wrong = set(), []
        for entry, runs in offline.items():
            name = next(n for n, r in court.symbols.named.items() if r[0].start == entry)
            parts = court.symbols.code_of(name)
            real = [
                [step.address for step in steps(run, court.referee.code)]
                for run in executions(trace, parts, entry)
            ]
            for run in runs:
                if run in real:
                    agreed.add(name)
                else:
                    wrong.append((name, run, real))
    assert [] == wrong
    assert len(agreed) >= LEAST, agreed


def _offline(waiting: Waiting) -> dict[int, list[list[int]]]:
    """The instructions of each execution of a watched function, by the function's entry."""
    kernel = open_kernel(LiveEvidence(waiting.link))
    caller = Caller(kernel, task=waiting.pid)
    code = Code(kernel, caller.arch)
    entries = {s.address for name in WATCHED for s in kernel.symbols.named(name, modules=False)}
    found: dict[int, list[list[int]]] = {}
    for text in CALLS:
        history = dry_run(caller, text, detail=True).history(code)
        for frame in history.all_frames:
            if frame.entry in entries:
                found.setdefault(frame.entry, []).append(
                    [a for a, n in zip(history.steps, history.frame_at, strict=True)
                     if n == frame.number]
                )  # fmt: skip
    return found


def _go(waiting: Waiting) -> None:
    waiting.results()
