"""The call tree from return addresses: on real recordings of four kernels, and case by case."""

import pytest
from tests.unit.record_build import KERNELS, Hints, Kept, Names, Story, common, kept

from kwhy.record.model import Call
from kwhy.record.recording import Recording

F, G, H, J = 0x1000, 0x2000, 0x3000, 0x4000
FUNCTIONS = Names(
    [
        (0x100, 0x100, "do_syscall_64"),
        (F, 0x100, "__x64_sys_ioctl"),
        (G, 0x100, "tty_ioctl"),
        (H, 0x100, "tty_check_change"),
        (J, 0x100, "__tty_check_change"),
        (0x5000, 0x100, "helper"),
        (0x5800, 0x100, "helper.cold"),
        (0x6000, 0x100, "sysvec_apic_timer_interrupt"),
        (0x7000, 0x100, "irq_enter_rcu"),
        (0x8000, 0x100, "hrtimer_interrupt"),
        (0x9000, 0x100, "exc_page_fault"),
        (0xA000, 0x100, "handle_mm_fault"),
        (0xB000, 0x100, "return_to_handler"),
        (0xC000, 0x100, "handle_softirqs"),
        (0xD000, 0x100, "__rb_reserve_next"),
        (0xE000, 0x100, "ktime_get_mono_fast_ns"),
        (0xF000, 0x100, "__schedule"),
        (0x10000, 0x100, "finish_task_switch"),
    ]
)
ENTRY = 0x150
T = 7  # the task


def shape(recording: Recording, calls: list[Call]) -> list[object]:
    """A tree as nested lists of names; implicit frames in brackets, tail calls with a tilde."""
    out: list[object] = []
    for call in calls:
        name = recording.functions.at(call.function).name
        name = f"[{name}]" if call.kind == "implicit" else name
        name = f"!{name}" if call.kind == "interrupt" else name
        out.append(f"~{name}" if call.tail else name)
        if call.children:
            out.append(shape(recording, call.children))
    return out


def window(*events: tuple[int, ...], hints: Hints | None = None) -> tuple[Recording, list[Call]]:
    """The tree of one ioctl with these (ip, parent_ip[, flags]) events."""
    story = Story().enter(T, 16, 3)
    for event in events:
        story.function(T, *event)
    recording = story.leave(T, 16, -5).read(FUNCTIONS, hints)
    return recording, recording.syscall(0).calls


def names(kept_one: Kept, hints: bool = True) -> tuple[Recording, list[object]]:
    recording = kept_one.read(hints)
    (index,) = [
        i for i in recording.failing.tolist() if recording.windows.nr[i] == 16
    ]
    return recording, shape(recording, recording.syscall(index).calls)


def path(tree: list[object], *wanted: str) -> list[object]:
    """The children below a chain of names, wherever the first is."""
    for at, item in enumerate(tree):
        below = tree[at + 1] if at + 1 < len(tree) and isinstance(tree[at + 1], list) else []
        assert isinstance(below, list)
        if item == wanted[0]:
            return path(below, *wanted[1:]) if len(wanted) > 1 else below
        if isinstance(item, list):
            try:
                return path(item, *wanted)
            except LookupError:
                continue
    raise LookupError(wanted[0])


@pytest.mark.parametrize("series", KERNELS)
def test_a_real_ioctl_has_the_tree_that_its_source_says(series: str) -> None:
    """tcsetattr's EIO on four kernels, tail calls and functions that are not traced included."""
    _, tree = names(kept(f"eio-{series}"))
    change = "__tty_check_change" if series in ("6.12", "7.2") else "__tty_check_change.part.0"
    entry = ("__x64_sys_ioctl" if series == "5.10" else "~__x64_sys_ioctl")
    setter = ("~tty_mode_ioctl",) if series == "5.10" else ("~tty_mode_ioctl", "set_termios")
    below = path(
        tree, entry, "tty_ioctl", "n_tty_ioctl", "~n_tty_ioctl_helper", *setter,
        "tty_check_change", f"~{change}",
    )  # fmt: skip
    plain = [item for item in below if isinstance(item, str)]
    assert [
        "_raw_spin_lock_irqsave", "_raw_spin_unlock_irqrestore", "is_current_pgrp_orphaned",
    ] == [name for name in plain if "rcu" not in name]  # fmt: skip
    assert "will_become_orphaned_pgrp" in path(tree, "is_current_pgrp_orphaned")


@pytest.mark.parametrize("series", KERNELS)
def test_without_the_code_tail_calls_stay_siblings_with_one_site(series: str) -> None:
    """Nothing is invented: the same return address twice is told as it was recorded."""
    kept_one = kept(f"eio-{series}")
    recording = kept_one.read(hints=False)
    (index,) = [i for i in recording.failing.tolist() if recording.windows.nr[i] == 16]
    sites: dict[str, int | None] = {}
    for call in recording.syscall(index).walk():
        sites[recording.functions.at(call.function).name] = call.site
        assert not call.tail
    assert sites["n_tty_ioctl"] == sites["n_tty_ioctl_helper"] == sites["tty_mode_ioctl"]


@pytest.mark.parametrize("series", KERNELS)
def test_the_entry_function_is_found(series: str) -> None:
    """The analysis starts at the system call's own function."""
    recording = kept(f"eio-{series}").read()
    (index,) = [i for i in recording.failing.tolist() if recording.windows.nr[i] == 16]
    record = recording.syscall(index)
    assert record.entry is not None
    assert "__x64_sys_ioctl" == recording.functions.at(record.entry.function).name
    assert ("ioctl", -5, False, False) == (record.name, record.ret, record.compat, record.lost)


def test_a_call_belongs_to_the_function_around_its_return_address() -> None:
    """Calls nest by return address; what was open above the caller has returned."""
    recording, calls = window(
        (F + 4, ENTRY), (G + 4, F + 0x20), (H + 4, G + 0x30), (J + 4, F + 0x40)
    )
    assert [
        "[do_syscall_64]", ["__x64_sys_ioctl", ["tty_ioctl", ["tty_check_change"],
                                                "__tty_check_change"]]
    ] == shape(recording, calls)  # fmt: skip
    assert F + 0x20 == calls[0].children[0].children[0].site


def test_a_call_that_ends_its_caller_has_the_return_address_right_behind_it() -> None:
    """After the last instruction of a noreturn caller the next function starts."""
    recording, calls = window((F + 4, ENTRY), (G + 4, F + 0x100))
    assert ["[do_syscall_64]", ["__x64_sys_ioctl", ["tty_ioctl"]]] == shape(recording, calls)


def test_a_tail_call_is_told_from_a_loop_by_the_call_instruction() -> None:
    """Twice the same return address: the instruction there names who was really called."""
    events = [(F + 4, ENTRY), (H + 4, F + 0x20), (J + 4, F + 0x20), (H + 4, F + 0x20)]
    recording, calls = window(*events, hints=Hints({F + 0x20: H}, {H: [J]}))
    assert [
        "[do_syscall_64]",
        ["__x64_sys_ioctl", ["tty_check_change", ["~__tty_check_change"], "tty_check_change"]],
    ] == shape(recording, calls)


def test_a_tail_call_behind_an_indirect_call_is_believed_when_the_code_has_the_jump() -> None:
    """The call's target is unknown, but the function entered first jumps to the second."""
    events = [(F + 4, ENTRY), (H + 4, F + 0x20), (J + 4, F + 0x20)]
    recording, calls = window(*events, hints=Hints({}, {H: [J]}))
    assert [
        "[do_syscall_64]", ["__x64_sys_ioctl", ["tty_check_change", ["~__tty_check_change"]]]
    ] == shape(recording, calls)  # fmt: skip
    recording, calls = window(*events, hints=Hints({}, {H: [G]}))
    assert [
        "[do_syscall_64]", ["__x64_sys_ioctl", ["tty_check_change", "__tty_check_change"]]
    ] == shape(recording, calls)  # fmt: skip


def test_a_tail_call_out_of_an_untraced_function_shows_that_function() -> None:
    """The call instruction names a function without an event, which jumped on."""
    events = [(F + 4, ENTRY), (J + 4, F + 0x20)]
    recording, calls = window(*events, hints=Hints({F + 0x20: H}, {}))
    assert [
        "[do_syscall_64]", ["__x64_sys_ioctl", ["[tty_check_change]", ["~__tty_check_change"]]]
    ] == shape(recording, calls)  # fmt: skip


def test_an_untraced_function_that_calls_and_then_jumps_on_is_one_frame() -> None:
    """Its first callee tells no call site of it, the function that it jumps to does."""
    events = [(F + 4, ENTRY), (H + 4, 0x5020), (J + 4, F + 0x20)]
    recording, calls = window(*events, hints=Hints({F + 0x20: 0x5000}, {F: [0x5000], 0x5000: [H]}))
    below = ["[helper]", ["tty_check_change", "~__tty_check_change"]]
    assert ["[do_syscall_64]", ["__x64_sys_ioctl", below]] == shape(recording, calls)
    assert [F + 0x20] == [call.site for call in calls[0].walk() if call.function == 0x5000]


def test_an_untraced_caller_is_put_where_the_code_calls_it() -> None:
    """Not under the leaf that was called last, but under the function that calls it."""
    events = [(F + 4, ENTRY), (G + 4, F + 0x20), (H + 4, G + 0x10), (J + 4, 0x5020)]
    recording, calls = window(*events, hints=Hints({}, {G: [H, 0x5000]}))
    below = ["tty_check_change", "[helper]", ["__tty_check_change"]]
    assert ["[do_syscall_64]", ["__x64_sys_ioctl", ["tty_ioctl", below]]] == shape(recording, calls)
    assert not any(call.guessed for call in calls[0].walk())


def test_untraced_functions_in_a_row_are_bridged() -> None:
    """The caller's caller left no event either, nor perhaps the one before."""
    events = [(F + 4, ENTRY), (J + 4, 0x5020)]
    two = Hints({}, {F: [G], G: [0x5000]}, untraced=[G])
    three = Hints({}, {F: [G], G: [H], H: [G, 0x5000]}, untraced=[G, H])
    for hints, between in (
        (two, ["[tty_ioctl]"]),
        (three, ["[tty_ioctl]", "[tty_check_change]"]),
    ):
        recording, calls = window(*events, hints=hints)
        tree: list[object] = ["[helper]", ["__tty_check_change"]]
        for name in reversed(between):
            tree = [name, tree]
        assert ["[do_syscall_64]", ["__x64_sys_ioctl", tree]] == shape(recording, calls)


def test_without_the_code_the_place_of_an_untraced_caller_is_a_guess_and_says_so() -> None:
    """Guesses are marked."""
    _, calls = window((F + 4, ENTRY), (J + 4, 0x5020))
    assert ["helper"] == [
        FUNCTIONS.at(c.function).name for c in calls[0].walk() if c.guessed  # type: ignore[union-attr]
    ]


def test_the_cold_part_of_a_function_is_the_function() -> None:
    """A call from NAME.cold nests under NAME."""
    recording, calls = window((F + 4, ENTRY), (0x5004, F + 0x20), (J + 4, 0x5820))
    assert ["[do_syscall_64]", ["__x64_sys_ioctl", ["helper", ["__tty_check_change"]]]] == shape(
        recording, calls
    )


def test_an_interrupt_is_not_part_of_the_call() -> None:
    """It becomes a tree of its own, and the call goes on where it was."""
    story = Story().enter(T, 16, 3)
    story.function(T, F + 4, ENTRY).function(T, G + 4, F + 0x20)
    story.function(T, 0x7004, 0x6010, flags=0x01).function(T, 0x8004, 0x6020, flags=0x09)
    story.function(T, H + 4, G + 0x30)
    recording = story.leave(T, 16, -5).read(FUNCTIONS)
    record = recording.syscall(0)
    assert [
        "[do_syscall_64]", ["__x64_sys_ioctl", ["tty_ioctl", ["tty_check_change"]]]
    ] == shape(recording, record.calls)  # fmt: skip
    assert ["!sysvec_apic_timer_interrupt", ["irq_enter_rcu", "hrtimer_interrupt"]] == shape(
        recording, record.interrupts
    )


def test_a_page_fault_taken_inside_the_call_is_an_interruption() -> None:
    """Its flags say task context; the entry function it came through does not."""
    events = [(F + 4, ENTRY), (0xA004, 0x9010), (G + 4, F + 0x20)]
    recording, calls = window(*events)
    assert ["[do_syscall_64]", ["__x64_sys_ioctl", ["tty_ioctl"]]] == shape(recording, calls)
    assert ["!exc_page_fault", ["handle_mm_fault"]] == shape(
        recording, recording.syscall(0).interrupts
    )


def test_a_softirq_at_the_end_of_a_locked_section_is_an_interruption() -> None:
    """local_bh_enable() runs pending softirqs in the task's own context."""
    events = [(F + 4, ENTRY), (0xC004, F + 0x10), (0x8004, 0xC020, 0x10), (G + 4, F + 0x20)]
    recording, calls = window(*events)
    assert ["[do_syscall_64]", ["__x64_sys_ioctl", ["tty_ioctl"]]] == shape(recording, calls)


def test_the_tracers_own_look_at_the_clock_is_left_out() -> None:
    """On 5.10 the clock "mono" is itself traced, twice for each event."""
    noise = (0xE000, 0xD010)
    recording, calls = window((F, ENTRY), noise, noise, (G, F + 0x20), noise, noise)
    assert ["[do_syscall_64]", ["__x64_sys_ioctl", ["tty_ioctl"]]] == shape(recording, calls)


def test_a_return_address_replaced_by_another_tracer_is_an_unknown_site() -> None:
    """Somebody runs function_graph: the call is there, its site is not."""
    recording, calls = window((F + 4, ENTRY), (G + 4, 0xB000), hints=Hints({}, {F: [G]}))
    assert ["[do_syscall_64]", ["__x64_sys_ioctl", ["tty_ioctl"]]] == shape(recording, calls)
    assert None is calls[0].children[0].children[0].site
    assert recording.syscall(0).notes


def test_calls_of_a_function_without_a_symbol_share_one_frame() -> None:
    """Code without a name (a JIT's) close together counts as one function."""
    recording, calls = window((F + 4, ENTRY), (G + 4, 0x900010), (H + 4, 0x900080))
    (nameless,) = [c for c in calls[0].walk() if not recording.functions.at(c.function).name]
    assert 2 == len(nameless.children)


def test_function_graph_events_make_the_same_tree() -> None:
    """Entry and exit with a depth, no sites."""
    story = Story().enter(T, 16, 3)
    story.blobs["format/ftrace/funcgraph_entry"] = GRAPH_ENTRY.encode()
    story.blobs["format/ftrace/funcgraph_exit"] = GRAPH_EXIT.encode()
    for depth, function in enumerate((F, G, H)):
        story.add(common(11, T) + function.to_bytes(8, "little") + depth.to_bytes(4, "little"))
    for depth, function in ((2, H), (1, G)):
        story.add(
            common(10, T) + function.to_bytes(8, "little") + depth.to_bytes(4, "little")
            + bytes(4) + (100).to_bytes(8, "little") + (350).to_bytes(8, "little")
        )  # fmt: skip
    recording = story.leave(T, 16, -5).read(FUNCTIONS)
    calls = recording.syscall(0).calls
    assert ["__x64_sys_ioctl", ["tty_ioctl", ["tty_check_change"]]] == shape(recording, calls)
    assert 250 == calls[0].children[0].duration


GRAPH_ENTRY = """name: funcgraph_entry
ID: 11
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:unsigned char common_flags;	offset:2;	size:1;	signed:0;
	field:unsigned char common_preempt_count;	offset:3;	size:1;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

	field:unsigned long func;	offset:8;	size:8;	signed:0;
	field:int depth;	offset:16;	size:4;	signed:1;
"""
GRAPH_EXIT = """name: funcgraph_exit
ID: 10
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:unsigned char common_flags;	offset:2;	size:1;	signed:0;
	field:unsigned char common_preempt_count;	offset:3;	size:1;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

	field:unsigned long func;	offset:8;	size:8;	signed:0;
	field:int depth;	offset:16;	size:4;	signed:1;
	field:unsigned int overrun;	offset:20;	size:4;	signed:0;
	field:unsigned long long calltime;	offset:24;	size:8;	signed:0;
	field:unsigned long long rettime;	offset:32;	size:8;	signed:0;
"""


def test_an_interrupt_before_the_first_function() -> None:
    """It is a tree of its own, and the call that it kept waiting still begins with its entry."""
    irq = (0x7000, 0x6010)  # irq_enter_rcu from sysvec_apic_timer_interrupt
    recording, calls = window(irq, (0x8000, 0x6020, 0x09), (F, ENTRY), (G, F + 0x20))
    assert ["[do_syscall_64]", ["__x64_sys_ioctl", ["tty_ioctl"]]] == shape(recording, calls)


@pytest.mark.parametrize(("once", "expected"), [
    ([G + 0x20], ["tty_ioctl", ["tty_check_change", ["~__tty_check_change"]]]),
    ([], ["tty_ioctl", ["tty_check_change", "__tty_check_change"]]),
])  # fmt: skip
def test_an_indirect_call_that_returned_once_was_jumped_on(
    once: list[int], expected: list[object]
) -> None:
    """A second function with the same return address, outside of any loop, came by a tail call."""
    hints = Hints({}, {}, once=once)
    recording, calls = window(
        (F, ENTRY), (G, F + 0x20), (H, G + 0x20), (J, G + 0x20), hints=hints
    )
    assert expected == shape(recording, calls)[1][1]  # type: ignore[index]


@pytest.mark.parametrize("before", [(), ((0x7000, 0x6010), (0x8000, 0x6020, 0x09))])
def test_being_preempted_is_no_part_of_the_call(before: tuple[tuple[int, ...], ...]) -> None:
    """Neither from an interrupt's end nor from a preempt_enable(), which any function may have."""
    hints = Hints({}, {0x100: [0xF000]})  # the outermost frame could have called the scheduler
    recording, calls = window(
        (F, ENTRY), (G, F + 0x20), *before, (0x10000, 0xF020), (H, G + 0x30), hints=hints
    )
    assert ["[do_syscall_64]", ["__x64_sys_ioctl", ["tty_ioctl", ["tty_check_change"]]]] == shape(
        recording, calls
    )
