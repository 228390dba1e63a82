"""Calls whose arguments and results are more than numbers, as a kernel engineer types them."""

import os
from typing import Any

import pytest
from tests.lab.conftest import SERIES, Dumps

from kwhy.case.vmcore import VmcoreEvidence
from kwhy.diagnose.call import Question, explain
from kwhy.emulate.call import Caller
from kwhy.errors import UsageError
from kwhy.kernel.model import Kernel, open_kernel
from kwhy.verdict.call import CallVerdict

pytestmark = pytest.mark.lab

OPEN = os.O_CREAT | os.O_RDWR
STRUCTURES: dict[str, Any] = {
    # results of two words, and of more; the same as arguments
    "ns_to_timespec64(1500000000)": {"tv_sec": 1, "tv_nsec": 500_000_000},
    "ns_to_timespec64(-1)": {"tv_sec": -1, "tv_nsec": 999_999_999},
    f"build_open_how({OPEN}, 0644)": {"flags": OPEN, "mode": 0o644, "resolve": 0},
    "timespec64_add_safe((struct timespec64){1, 999999999}, (struct timespec64){.tv_sec = 2, 1})": {
        "tv_sec": 4, "tv_nsec": 0
    },
    "tnum_const(6)": {"value": 6, "mask": 0},
    "tnum_add(tnum_const(2), tnum_const(3))": {"value": 5, "mask": 0},
    "tnum_in((struct tnum){4, 3}, (struct tnum){5, 2})": True,
    "tnum_in((struct tnum){4, 3}, (struct tnum){8, 0})": False,
    "timespec64_to_jiffies(&(struct timespec64){2, 0})": 500,
    "make_kuid(&init_user_ns, 1000)": {"val": 1000},
    "from_kuid(&init_user_ns, (kuid_t){1000})": 1000,
}  # fmt: skip
EXPRESSIONS: dict[str, Any] = {
    "int_sqrt(int_sqrt(81) * 9 + 0)": 9,
    "hweight(0)": "There is __sw_hweight",
    "int_sqrt(0xffUL << 40 ? 16 : 25)": 4,
    'bpf_strncmp("abc", 3, "abc")': 0,  # pointers that are passed as integers
    "bpf_get_smp_processor_id()": 0,
    "pid_vnr(find_vpid(1))": 1,
    "pid_nr_ns(container_of(&init_task.tasks, struct task_struct, tasks)->thread_pid, NULL)": 0,
    "pid_vnr(list_first_entry(&init_task.tasks, struct task_struct, tasks)->thread_pid)": 1,
    "strlen((char *)\"hello\" + sizeof(char))": 4,
    "init_net.loopback_dev->ethtool_ops->get_link(init_net.loopback_dev)": 1,
}  # fmt: skip


@pytest.fixture(params=[pytest.param(s, marks=() if s == "6.12" else pytest.mark.slow)
                        for s in SERIES])  # fmt: skip
def kernel(request: pytest.FixtureRequest, dumps: Dumps) -> Kernel:
    """The kernel in a dump of each series' guest."""
    return open_kernel(VmcoreEvidence(dumps(str(request.param))))


def told(kernel: Kernel, text: str, **options: Any) -> CallVerdict:
    return explain(kernel, Question(text, **options), lambda: None)


def test_structures_and_expressions(kernel: Kernel) -> None:
    """By value in registers, on the stack and through a hidden pointer; calls within calls."""
    caller = Caller(kernel)
    answered = 0
    for text, known in (STRUCTURES | EXPRESSIONS).items():
        try:
            outcome = caller.call(text)
        except UsageError as error:
            assert isinstance(known, str) or "has no function" in str(error), (text, error)
            continue
        assert outcome.returned, (text, outcome.end)
        assert known == outcome.result.value_(), text
        answered += 1
    assert answered >= 14


def test_negative_numbers_are_errors_where_the_code_makes_them(kernel: Kernel) -> None:
    """-1 of a comparison and a priority are none; a missing capability is."""
    for text, meaning in {
        'strcmp("a", "b")': None,
        "task_prio(&per_cpu(cpu_stopper.thread, 0)[0])": None,  # real-time: below zero
        'kstrtoint("x", 10, &out)': "-EINVAL",
        "cap_capable(&(struct cred){.user_ns = &init_user_ns}, &init_user_ns, 21, 0)": "-EPERM",
    }.items():
        ret = told(kernel, text).ret
        assert ret is not None, text
        assert (True, meaning) == (int(ret.value) < 0, ret.text), text
    out = told(kernel, 'kstrtoint("-5", 10, &out)').outs[0]
    assert "-5" == out.value


def test_what_cannot_be_called_is_told(kernel: Kernel) -> None:
    """Freed code, and names that several functions have; one of those can be chosen."""
    caller = Caller(kernel)
    with pytest.raises(UsageError, match="__init"):
        caller.call("start_kernel()")
    with pytest.raises(UsageError, match=r"functions are called \w+; say which: \w+@"):
        caller.call("c_start(NULL, &position)")
    chosen = caller.call("c_start@fs/proc/consoles.c(NULL, &position)")
    assert chosen.function.name == "c_start"
    with pytest.raises(UsageError, match="no c_start"):
        caller.call("c_start@nowhere.c(NULL, &position)")


def test_a_per_cpu_variable_needs_a_cpu(kernel: Kernel) -> None:
    """The address of its template is none of memory, or (since 6.15) of memory given back."""
    verdict = told(kernel, "work_busy((struct work_struct *)&vmstat_work)")
    assert any("per-CPU" in note for note in verdict.evidence.notes)


def test_a_mistyped_name_is_no_silent_answer(kernel: Kernel) -> None:
    """Memory is made for it, which is said."""
    verdict = told(kernel, "mutex_is_locked(&rtnl_mutxe)")
    assert any("nothing in the kernel is called rtnl_mutxe" in n for n in verdict.evidence.notes)


def test_the_branch_that_decided_is_told(kernel: Kernel) -> None:
    """Also where it compared what the run itself had made; per-CPU variables have their names."""
    because = told(kernel, 'kern_path("/etc/nosuch", 0, &path)', why=True).because
    asked = [(kernel.source(c.file or "") or "").split("\n")[(c.line or 1) - 1] for c in because]
    assert any("negative" in line for line in asked), asked
    because = told(kernel, "idle_cpu(0)", why=True).because
    names = {o.expr for c in because for o in c.operands}
    assert any(name.startswith("per_cpu(runqueues, cpu).") for name in names), names


def test_a_read_that_faults_leaves_what_the_fault_handler_does(kernel: Kernel) -> None:
    """The register that would have got the value is cleared, and so is what it is stored to."""
    verdict = told(kernel, "copy_from_kernel_nofault(&out, (void *)0xfff0000000000000, 8)")
    assert verdict.ret is not None
    assert "-EFAULT" == verdict.ret.text
    start = kernel.symbols.address("copy_from_kernel_nofault")
    assert start is not None
    if all(entry.cleared for entry in kernel.exception_table(start, start + 0x80)):
        assert set(verdict.outs[0].value) <= set('{ 0,}"')
