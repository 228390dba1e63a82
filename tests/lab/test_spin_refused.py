"""``kwhy spin`` where it cannot be watched, or not in full: said in one line, or done otherwise."""

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.lab.desk import kwhy, run_in
from tests.lab.spinning import insert, spin, spinning

from kwhy import lab
from kwhy.lab.spins import CONTROL, SETTINGS

pytestmark = [pytest.mark.lab, pytest.mark.slow]

# Four breakpoints on each processor, until somebody kills it (agent/perf.py has the structure).
TAKE_ALL = """
import ctypes, os, struct, time
libc = ctypes.CDLL(None)
for cpu in (0, 1):
    for n in range(4):
        attr = struct.pack("<IIQQQQQIIQQQQIiQIHH", 5, 112, 0, 1, 0, 0, 16, 1, 4,
                           0xffffffff81000000 + 64 * n, 8, 0, 0, 0, 0, 0, 0, 64, 0)
        assert libc.syscall(298, ctypes.create_string_buffer(attr, 112), -1, cpu, -1, 8) > 0
open("/tmp/taken", "w").close()
time.sleep(600)
"""


@pytest.fixture(scope="module")
def guest() -> Iterator[lab.Guest]:
    """One for all, for the last test here locks it down."""
    name = f"refused-{os.getpid()}"
    with lab.start("6.12", name, replace(SETTINGS, keep=False)) as guest:
        insert(guest)
        yield guest


def shell(guest: lab.Guest, command: str) -> str:
    with lab.open_link(guest, probe=False) as link:
        status, out, err = run_in(link, "sh", "-c", command)
        assert 0 == status, err
        return out


@pytest.mark.parametrize(("number", "status"), [("99999", 1), ("0", 2), ("-5", 2), ("x", 2)])
def test_a_thread_that_is_not_there(guest: lab.Guest, number: str, status: int) -> None:
    """There is no such thread, or no thread can be called so."""
    answer = kwhy("spin", number, "--lab", guest.name)
    assert status == answer.status
    assert not answer.out
    assert "Traceback" not in answer.err


def test_a_thread_that_ends_while_it_is_watched(guest: lab.Guest) -> None:
    """In the middle of its loop."""
    release = f"sleep 4; echo release > {CONTROL}"
    with spinning(guest, f"echo plain > {CONTROL}") as tid:
        shell(guest, f"setsid sh -c '{release}' < /dev/null > /dev/null 2>&1 &")
        answer = kwhy("spin", str(tid), "--lab", guest.name, "--seconds", "20")
    assert 1 == answer.status
    assert "ended while it was watched" in answer.err
    assert "Traceback" not in answer.err


def test_breakpoints_that_others_have(guest: lab.Guest) -> None:
    """With all four taken code executed offline tells, and nobody's are lost; root may watch
    whatever perf_event_paranoid says."""
    shell(guest, "echo 3 > /proc/sys/kernel/perf_event_paranoid")
    take = f"setsid python3 -c '{TAKE_ALL}' < /dev/null > /dev/null 2>&1 & echo $!"
    taken = "while ! test -e /tmp/taken; do sleep 0.1; done"
    with spinning(guest, f"echo plain > {CONTROL}") as tid:
        holder = shell(guest, f"{take}; {taken}").strip()
        verdict = spin(guest, tid).verdict
        shell(guest, f"kill {holder}")
    assert ("endless", "deduced") == (verdict["state"], verdict["confidence"])
    assert ("spin_plain", None) == (verdict["loop"]["function"], verdict["loop"]["head_hits"])
    assert "all debug registers are in use" in " ".join(verdict["evidence"]["notes"])


def test_a_kernel_that_is_locked_down(guest: lab.Guest) -> None:
    """Nothing of its memory can be had: it says so and names the feature."""
    file = "/sys/kernel/security/lockdown"
    mount = f"test -e {file} || mount -t securityfs none /sys/kernel/security"
    with spinning(guest, f"echo plain > {CONTROL}") as tid:
        shell(guest, f"{mount}; echo confidentiality > {file}")
        answer = kwhy("spin", str(tid), "--lab", guest.name)
    assert 3 == answer.status
    assert "lockdown" in answer.err
    assert "Traceback" not in answer.err
