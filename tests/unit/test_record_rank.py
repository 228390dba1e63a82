"""Which failure explains the end: the ways in which programs fail and say so."""

import pytest
from tests.unit.record_build import KERNELS, Story, kept

from kwhy.record.rank import rank

A, B = 100, 200
READ, WRITE, CLOSE, LSEEK, IOCTL, ACCESS, DUP, FSTAT = 0, 1, 3, 8, 16, 21, 32, 5
CONNECT, BIND, EXECVE, EXIT, WAIT4, MKDIR, EXIT_GROUP, OPENAT = 42, 49, 59, 60, 61, 83, 231, 257
SET_TID_ADDRESS, FUTEX = 218, 202
ENOENT, EIO, EAGAIN, EACCES, EEXIST, ENOTTY, ESPIPE = -2, -5, -11, -13, -17, -25, -29
EADDRINUSE = -98
EBADF, ENOTEMPTY, EINTR_RESTART = -9, -39, -512


def program(story: Story | None = None, tid: int = A) -> Story:
    """A dynamic program starts: exec, the loader's searches, the C library's set-up."""
    story = story or Story(extra={"armed": {"pid": A}})
    story.call(tid, EXECVE, 0, 0x1000).call(tid, ACCESS, ENOENT, 0x2000, 4)
    story.call(tid, OPENAT, ENOENT, -100, 0x3000).call(tid, OPENAT, 3, -100, 0x3100)
    return story.call(tid, CLOSE, 0, 3).call(tid, SET_TID_ADDRESS, tid)


def complain(story: Story, text: str = "", tid: int = A) -> Story:
    """What perror() does."""
    story.tails["err"] = text
    story.call(tid, DUP, 5, 2).call(tid, FSTAT, 0, 5).call(tid, CLOSE, 0, 5)
    return story.call(tid, WRITE, 20, 2, 0x5000, 20)


def first(story: Story, **filters: str) -> tuple[str, str]:
    """The call that comes out on top."""
    best = rank(story.read(), **filters)[0]
    return best.name, best.errno


def test_the_failure_before_the_message_wins() -> None:
    """Loader, terminal test and closing noise around it do not."""
    story = program().call(A, BIND, EADDRINUSE, 3)
    complain(story, "bind: Address already in use\n").call(A, CLOSE, EBADF, 9)
    assert ("bind", "EADDRINUSE") == first(story.enter(A, EXIT_GROUP, 1))


def test_stdio_asking_for_a_terminal_between_failure_and_message_is_passed_over() -> None:
    """The first write to a stream asks TCGETS."""
    story = program().call(A, MKDIR, EACCES, 0x100).call(A, IOCTL, ENOTTY, 2, 0x5401)
    assert ("mkdir", "EACCES") == first(complain(story).enter(A, EXIT_GROUP, 1))


def test_the_words_of_the_message_choose_among_two() -> None:
    """The message names the earlier failure."""
    story = program().call(A, OPENAT, EACCES, -100, 0x1).call(A, MKDIR, ENOTEMPTY, 0x2)
    complain(story, "cannot open config: Permission denied")
    assert ("openat", "EACCES") == first(story.enter(A, EXIT_GROUP, 1))


def test_a_number_in_the_message_counts_as_its_name() -> None:
    """Python's tracebacks."""
    story = program().call(A, IOCTL, EIO, 0).call(A, READ, EBADF, 77)
    complain(story, "OSError: [Errno 5] Input/output error")
    assert ("ioctl", "EIO") == first(story.enter(A, EXIT_GROUP, 1))


def test_a_silent_program_is_explained_by_its_last_failure_before_the_exit_status() -> None:
    """No message at all."""
    story = program().call(A, CONNECT, -111, 3).call(A, CLOSE, 0, 3).enter(A, EXIT_GROUP, 4)
    assert ("connect", "ECONNREFUSED") == first(story)


def test_a_missing_file_is_an_answer_when_it_is_what_the_program_complains_about() -> None:
    """ENOENT is routine for the loader, not for cat."""
    story = program().call(A, OPENAT, ENOENT, -100, 0x7000)
    best = rank(complain(story, "cat: x: No such file or directory").enter(A, EXIT_GROUP, 1).read())
    assert (("openat", "ENOENT"), 6) == ((best[0].name, best[0].errno), best[0].index)


def test_the_child_that_failed_is_found_behind_the_parent_that_passes_its_status_on() -> None:
    """A shell waits, has no children left, and exits with the child's status."""
    story = program()
    program(story, B).call(B, MKDIR, EEXIST, 0x9)
    complain(story, "mkdir: cannot create directory: File exists", B).enter(B, EXIT_GROUP, 1)
    story.call(A, WAIT4, B).call(A, WAIT4, -10).enter(A, EXIT_GROUP, 1)
    assert ("mkdir", "EEXIST") == first(story)


def test_looking_for_the_program_in_the_path_is_no_failure() -> None:
    """execve fails until it succeeds."""
    story = Story(extra={"armed": {"pid": A}})
    story.call(A, EXECVE, ENOENT, 0x1).call(A, EXECVE, ENOENT, 0x2)
    program(story).call(A, LSEEK, -22, 0)
    assert ("lseek", "EINVAL") == first(story.enter(A, EXIT_GROUP, 1))


def test_a_program_that_cannot_be_run_is_explained_by_execve() -> None:
    """Nothing else ever happened."""
    story = Story(extra={"armed": {"pid": A}}, status=126)
    assert ("execve", "EACCES") == first(story.call(A, EXECVE, EACCES, 1).enter(A, EXIT_GROUP, 126))


def test_what_is_tried_again_and_again_means_little() -> None:
    """A loop of EAGAIN beside one real failure."""
    story = program().call(A, MKDIR, EACCES, 0x100)
    for _ in range(40):
        story.call(A, READ, EAGAIN, 4).call(A, FUTEX, EAGAIN, 0x10)
    assert ("mkdir", "EACCES") == first(story.enter(A, EXIT_GROUP, 1))


def test_an_interrupted_call_is_named_even_when_user_space_never_sees_its_error() -> None:
    """ERESTARTSYS is the kernel's own."""
    story = program().call(A, READ, EINTR_RESTART, 0).enter(A, EXIT_GROUP, 0)
    assert ("read", "ERESTARTSYS") in [(r.name, r.errno) for r in rank(story.read())]


def test_a_program_that_succeeds_still_has_its_failures_ranked() -> None:
    """Status 0: the unusual before the routine."""
    story = program().call(A, MKDIR, EACCES, 0x100).call(A, LSEEK, ESPIPE, 1)
    assert ("mkdir", "EACCES") == first(story.enter(A, EXIT_GROUP, 0))


def test_filters_leave_only_what_was_asked_for() -> None:
    """--syscall and --errno."""
    story = program().call(A, MKDIR, EACCES, 0x100).call(A, IOCTL, EIO, 1).enter(A, EXIT_GROUP, 1)
    assert ("mkdir", "EACCES") == first(story, syscall="mkdir")
    assert ("ioctl", "EIO") == first(story, errno="EIO")
    assert [] == rank(story.read(), syscall="mkdir", errno="EIO")


def test_equal_failures_come_latest_first() -> None:
    """Nothing tells them apart but time."""
    story = Story().call(A, MKDIR, EACCES, 1).call(A, MKDIR, EACCES, 2)
    assert [1, 0] == [r.index for r in rank(story.read())]


def test_nothing_failed_is_an_empty_list() -> None:
    """Not an error here."""
    assert [] == rank(Story().call(A, READ, 5, 0).read())
    assert [] == rank(Story().read())


def test_every_failure_has_its_reason() -> None:
    """A user who chooses another wants to know why not this one."""
    story = program().call(A, IOCTL, ENOTTY, 1, 0x5401).enter(A, EXIT_GROUP, 0)
    assert all(r.reason for r in rank(story.read()))


@pytest.mark.parametrize("series", KERNELS)
def test_the_real_incident_comes_first_on_every_kernel(series: str) -> None:
    """tcsetattr's EIO."""
    best = rank(kept(f"eio-{series}").read())[0]
    assert ("ioctl", "EIO") == (best.name, best.errno)
