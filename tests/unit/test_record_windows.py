"""System calls as windows: pairing at the edges and across forks, execs and signals."""

from tests.unit.record_build import Story

A, B = 100, 200
ENOENT = -2


def test_entry_and_exit_are_paired_per_task() -> None:
    """Two tasks interleaved on two CPUs."""
    story = Story().enter(A, 2, 7).enter(B, 0, 9, cpu=1).leave(A, 2, ENOENT)
    w = story.leave(B, 0, 3, cpu=1).read().windows
    assert [(A, 2, ENOENT), (B, 0, 3)] == list(
        zip(w.tid.tolist(), w.nr.tolist(), w.ret.tolist(), strict=True)
    )
    assert [True, False] == w.failed.tolist()


def test_a_task_that_moves_to_another_cpu_keeps_its_call() -> None:
    """Entry on one CPU, exit on another."""
    w = Story().enter(A, 2, cpu=0).leave(A, 2, ENOENT, cpu=1).read().windows
    assert [True] == w.failed.tolist()


def test_a_child_returns_from_a_fork_it_never_entered() -> None:
    """An exit without an entry is a window without one, and no failure."""
    story = Story().enter(A, 56).leave(B, 56, 0).leave(A, 56, B).call(B, 39, B)
    w = story.read().windows
    assert [True, False, True] == w.complete.tolist()
    assert [] == story.read().failing.tolist()


def test_an_exit_right_behind_another_is_of_a_call_that_a_filter_answered() -> None:
    """A seccomp filter is asked before the entry is traced: mkdir (83) failed all the same."""
    story = Story().leave(A, 0, 3).call(A, 39, A).leave(A, 83, -1).call(A, 39, A)
    w = story.read().windows
    assert [False, False, True, False] == w.barred.tolist()
    assert [2] == story.read().failing.tolist()
    assert w.exit[1] == w.enter[2] < w.exit[2]
    assert story.read().syscall(2).barred


def test_a_call_that_never_returned_stays_open() -> None:
    """exit_group; the end of the recording ends it."""
    recording = Story().call(A, 39, A).enter(A, 231, 3).read()
    assert [True, False] == recording.windows.complete.tolist()
    assert 3 == recording.tasks[A].status


def test_an_exit_that_belongs_to_nobody_is_not_paired_with_the_wrong_entry() -> None:
    """An entry lost with its page: numbers differ."""
    w = Story().enter(A, 2).leave(A, 3, ENOENT).read().windows
    assert [False, False] == w.complete.tolist()


def test_returning_from_a_signal_handler_is_not_a_failure() -> None:
    """rt_sigreturn leaves with the number -1 and whatever the interrupted call had in rax."""
    story = Story().enter(A, 0).leave(A, 0, -512).enter(A, 15).leave(A, -1, -4)
    assert ["ERESTARTSYS"] == [errno for _, errno in story.read().counts]


def test_a_pointer_is_not_an_error() -> None:
    """Only [-4095, -1] are errors."""
    story = Story().call(A, 9, 0x7F0000000000).call(A, 9, -4096).call(A, 9, -4095)
    assert [2] == story.read().failing.tolist()


def test_failures_are_counted_by_call_and_error() -> None:
    """The cheap overview of everything that failed."""
    story = Story().call(A, 257, ENOENT).call(A, 257, ENOENT).call(B, 16, -25).call(B, 1, 5)
    assert {("openat", "ENOENT"): 2, ("ioctl", "ENOTTY"): 1} == dict(story.read().counts)


def test_events_of_the_same_time_as_an_edge_stay_on_their_side() -> None:
    """Equal stamps: on one CPU the order of writing decides."""
    story = Story()
    story.enter(A, 2).function(A, 0x1004, 0x2000).leave(A, 2, ENOENT).function(A, 0x3004, 0x2000)
    story.events[0] = [(5000, payload) for _, payload in story.events[0]]
    recording = story.read()
    assert 1 == len(recording.rows_of(0))


def test_a_loss_while_the_call_ran_is_told_and_one_outside_is_not() -> None:
    """Lost events may be anybody's: the window overlaps the hole or it does not."""
    story = Story().call(A, 2, ENOENT)
    story.time += 100_000
    story.call(A, 2, ENOENT)
    recording = story.read()
    from kwhy.record.pages import Gap

    recording.events.gaps.append(Gap(0, int(recording.windows.exit[1]), 5))
    assert [False, True] == [recording.syscall(i).lost for i in (0, 1)]
