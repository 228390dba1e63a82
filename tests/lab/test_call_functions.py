"""Pure kernel functions, run offline on a dump, against an answer that somebody else knows.

The other answer is a reimplementation in Python of what is documented, or drgn's own helper on the
same dump. A function that a kernel does not have (inlined, renamed, a module's) is left out; how
many must be there is checked.
"""

import zlib
from collections.abc import Callable
from typing import Any

import pytest
from tests.lab.conftest import SERIES, Dumps, Links

from kwhy.case.evidence import PAGE
from kwhy.case.vmcore import VmcoreEvidence
from kwhy.emulate.call import Caller
from kwhy.emulate.selftest import SelfTestFailed
from kwhy.errors import UsageError
from kwhy.kernel.model import open_kernel

pytestmark = pytest.mark.lab

LEAST = 75
"""How many functions of the table a kernel has to answer."""

BITS = int.from_bytes(b"abcdefgh", "little")
NEXT = next(bit for bit in range(13, 64) if BITS >> bit & 1)
RING = "global_trace.array_buffer.buffer"

Known = int | str | Callable[[Any], int]
"""A number, the text behind a returned char pointer, or what to ask of the drgn program."""


def _helper(module: str, name: str, *arguments: Any) -> Callable[[Any], int]:
    """The address that a drgn helper gives."""

    def ask(program: Any) -> int:
        helpers = __import__(f"drgn.helpers.linux.{module}", fromlist=[name])
        values = [a(program) if callable(a) else a for a in arguments]
        return int(getattr(helpers, name)(*values).value_())

    return ask


def _spaces(program: Any) -> Any:
    return program["init_pid_ns"].address_of_()


def _network(program: Any) -> Any:
    return program["init_net"].address_of_()


def _first_space(program: Any) -> Any:
    from drgn.helpers.linux.pid import find_task

    return find_task(program, 1).mm


def _area(program: Any) -> int:
    from drgn.helpers.linux.mm import vma_find

    space = _first_space(program)
    return int(vma_find(space, space.arg_start).value_())


FUNCTIONS: dict[str, Known] = {
    # lib/string.c, lib/string_helpers.c, lib/kstrtox.c
    'strlen("hello")': 5,
    'strnlen("hello", 3)': 3,
    'strcmp("abc", "abc")': 0,
    'strncmp("abc", "abd", 2)': 0,
    'strcasecmp("ABC", "abc")': 0,
    'strncasecmp("ABx", "aby", 2)': 0,
    'strspn("aabb", "a")': 2,
    'strcspn("hello", "l")': 2,
    "strchr(\"hello\", 'l')": "llo",
    "strrchr(\"hello\", 'l')": "lo",
    "strnchr(\"hello\", 5, 'e')": "ello",
    "strchrnul(\"hello\", 'z')": "",
    'strstr("hello", "ll")': "llo",
    'strnstr("hello", "lo", 5)': "lo",
    'strpbrk("hello", "xl")': "llo",
    'skip_spaces("  x")': "x",
    'memcmp("abc", "abc", 3)': 0,
    "memscan(\"hello\", 'o', 5)": "o",
    'sysfs_streq("on\\n", "on")': 1,
    'glob_match("a*c", "abbc")': 1,
    'glob_match("a?c", "abbc")': 0,
    'parse_option_str("a,b", "b")': 1,
    "hex_to_bin('f')": 15,
    'kstrtoint("-123", 10, &out)': 0,
    'kstrtoull("0xff", 0, &out)': 0,
    'kstrtou8("256", 10, &out)': -34,
    'kstrtobool("maybe", &out)': -22,
    'simple_strtoul("42x", NULL, 10)': 42,
    'simple_strtoull("ff", NULL, 16)': 255,
    'simple_strtol("-7", NULL, 10)': -7,
    'memparse("4K", NULL)': 4096,
    'uuid_is_valid("01234567-89ab-cdef-0123-456789abcdef")': 1,
    # lib/math, checksums and hashes
    "int_sqrt(1000)": 31,
    "gcd(12, 18)": 6,
    "lcm(4, 6)": 12,
    "int_pow(3, 4)": 81,
    'crc16(0, "123456789", 9)': 0xBB3D,
    'crc32_le(0xffffffff, "abc", 3)': zlib.crc32(b"abc") ^ 0xFFFFFFFF,
    'crc32_be(0, "\\x01", 1)': 0x04C11DB7,
    'xxh32("abc", 3, 0)': 0x32D153FF,
    'xxh64("abc", 3, 0)': 0x44BC2CF5AD770999,
    'in_aton("127.0.0.1")': 0x0100007F,
    # lib/bitmap.c, lib/find_bit.c, lib/cpumask.c
    '__bitmap_weight("abcdefgh", 64)': BITS.bit_count(),
    '__bitmap_equal("abcdefgh", "abcdefgh", 64)': 1,
    '__bitmap_subset("abcdefgh", "abcdefgX", 64)': int(
        not BITS & ~int.from_bytes(b"abcdefgX", "little")
    ),
    '__bitmap_intersects("a", "b", 8)': 1,
    '_find_first_bit("abcdefgh", 64)': 0,
    'find_first_bit("abcdefgh", 64)': 0,
    '_find_next_bit("abcdefgh", 64, 13)': NEXT,
    "cpumask_next(-1, &__cpu_online_mask)": 0,
    # kernel/time (CONFIG_HZ=250)
    "jiffies_to_msecs(250)": 1000,
    "jiffies_to_usecs(1)": 4000,
    "__msecs_to_jiffies(1000)": 250,
    "__usecs_to_jiffies(4000)": 1,
    "nsecs_to_jiffies(4000000)": 1,
    "jiffies_to_clock_t(250)": 100,
    "clock_t_to_jiffies(100)": 250,
    "jiffies64_to_nsecs(1)": 4_000_000,
    "mktime64(2024, 2, 29, 12, 0, 0)": 1_709_208_000,
    "rtc_month_days(1, 2024)": 29,
    # tasks, namespaces, credentials
    "find_task_by_vpid(1)": _helper("pid", "find_task", lambda p: p, 1),
    "find_task_by_pid_ns(2, &init_pid_ns)": _helper("pid", "find_task", lambda p: p, 2),
    "find_pid_ns(1, &init_pid_ns)": _helper("pid", "find_pid", _spaces, 1),
    "pid_vnr(task(1)->thread_pid)": 1,
    "pid_nr_ns(task(2)->thread_pid, &init_pid_ns)": 2,
    "pid_task(task(1)->thread_pid, PIDTYPE_PID)": _helper("pid", "find_task", lambda p: p, 1),
    "from_kuid(&init_user_ns, task(1)->cred->uid)": 0,
    "from_kgid(&init_user_ns, task(1)->cred->gid)": 0,
    "has_capability_noaudit(task(1), 21)": 1,
    "capable(21)": 1,
    "task_prio(task(1))": 20,
    # trees and their kin
    "idr_find(&init_pid_ns.idr, 1)": _helper("pid", "find_pid", _spaces, 1),
    "radix_tree_lookup(&init_pid_ns.idr.idr_rt, 2)": _helper("pid", "find_pid", _spaces, 2),
    "xa_load(&init_pid_ns.idr.idr_rt, 1)": _helper("pid", "find_pid", _spaces, 1),
    "find_vma(task(1)->mm, task(1)->mm->arg_start)": _area,
    # network
    '__dev_get_by_name(&init_net, "lo")': _helper("net", "netdev_get_by_name", _network, "lo"),
    "__dev_get_by_index(&init_net, 1)": _helper("net", "netdev_get_by_index", _network, 1),
    # the tracer's ring buffer, unused here
    f"ring_buffer_empty_cpu({RING}, 0)": 1,
    f"ring_buffer_empty({RING})": 1,
    f"ring_buffer_entries({RING})": 0,
    f"ring_buffer_overruns({RING})": 0,
    f"ring_buffer_record_is_on({RING})": 1,
    "tracing_is_on()": 1,
    "core_kernel_text((unsigned long)&schedule)": 1,
    "kernel_text_address((unsigned long)&schedule)": 1,
}


@pytest.fixture(params=[pytest.param(s, marks=() if s == "6.12" else pytest.mark.slow)
                        for s in SERIES])  # fmt: skip
def caller(request: pytest.FixtureRequest, dumps: Dumps) -> Caller:
    """A caller over a dump of each series' guest."""
    return Caller(open_kernel(VmcoreEvidence(dumps(str(request.param)))))


def test_pure_functions_agree(caller: Caller) -> None:
    """Each function of the table that the kernel has gives the answer that is known otherwise."""
    wrong: list[str] = []
    absent: list[str] = []
    for text, known in FUNCTIONS.items():
        try:
            outcome = caller.call(text)
        except UsageError as error:
            absent.append(f"{text}: {str(error).splitlines()[0]}")
            continue
        answer = _answer(outcome)
        expected = known(caller.program) if callable(known) else known
        if answer(expected) != expected:
            wrong.append(f"{text}: {answer(expected)!r}, not {expected!r} ({outcome.end.reason})")
    assert [] == wrong
    assert len(FUNCTIONS) - len(absent) >= LEAST, absent


def _answer(outcome: Any) -> Callable[[int | str], int | str | None]:
    def as_asked(expected: int | str) -> int | str | None:
        if not outcome.returned:
            return None
        value = int(outcome.result.value_())
        if isinstance(expected, str):
            data = bytes(outcome.scene.memory.read(value, 16))
            return data.split(b"\0")[0].decode()
        return value

    return as_asked


def test_the_dump_of_an_old_kernel_without_debug_symbols(dumps: Dumps, links: Links) -> None:
    """Before 6.0 nothing tells where the symbol table is: it is found, and is /proc/kallsyms'."""
    evidence = VmcoreEvidence(dumps("5.10"))
    live = links("5.10").blob("kallsyms") or b""
    own = {tuple(line.split()) for line in live.splitlines() if not line.endswith(b"]")}
    found = {tuple(line.split()) for line in (evidence.blob("kallsyms") or b"").splitlines()}
    assert own == found
    caller = Caller(open_kernel(evidence, "none"))
    assert int(caller.call("find_task_by_vpid(1)").result) == caller.find_task(1)


@pytest.mark.parametrize(
    "name",
    ["int_sqrt", "find_task_by_pid_ns", "kallsyms_lookup_name", "seq_list_start", "rb_first"],
)
def test_a_machine_that_answers_wrongly_is_refused(dumps: Dumps, name: str) -> None:
    """With code that gives another answer than is known, nothing can be called."""
    evidence = VmcoreEvidence(dumps("6.12"))
    kernel = open_kernel(evidence)
    address = kernel.symbols.address(name)
    assert address is not None
    page, at = address & -PAGE, address % PAGE
    entry = evidence.read(page, PAGE)
    other = kernel.symbols.address("init_task")
    assert other is not None
    code = b"\x48\xb8" + other.to_bytes(8, "little") + b"\xc3"  # movabs rax, init_task; ret
    evidence.pages[page] = entry[:at] + code + entry[at + len(code) :]
    with pytest.raises(SelfTestFailed, match="the self-test failed"):
        Caller(kernel)
