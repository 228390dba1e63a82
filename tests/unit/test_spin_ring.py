"""Where a thread is: functions that jump to each other, foreign stacks, trips to user space."""

from tests.unit.flow_build import ARCH, GAP, TOY, Machine, toy

from kwhy.diagnose.spin_frames import Place, comes_and_goes, on_its_stacks
from kwhy.diagnose.spin_loop import candidates
from kwhy.diagnose.spin_ring import ring
from kwhy.flow.cfg import Code
from kwhy.flow.loops import loops
from kwhy.record.samples import Sample

# test edi, edi; jne out; jmp (the other); out: ret
PING, PONG = "85ff 7505 e9f70f0000 c3", "85ff 7505 e9f7efffff c3"
CALL = TOY + 7 * GAP
CALLER = Place(CALL - 20, "caller", (CALL,) * 3, 77, (77,), (TOY, TOY + GAP + 2, TOY + 2))


def found(machine: Machine) -> object:
    return ring(machine, Code(machine, ARCH), CALLER)  # type: ignore[arg-type]


def test_two_functions_that_hand_over_to_each_other_are_a_loop() -> None:
    """The loop is in both, holds the samples of both, and is left by either's return."""
    machine = toy(ping=PING, pong=PONG)
    function, place = ring(machine, Code(machine, ARCH), CALLER) or (None, None)  # type: ignore[arg-type]
    assert function is not None
    assert place is not None
    assert (CALL + 1, (CALL + 1, 77)) == (place.back, place.above)
    (loop,) = loops(function)
    assert (TOY, {TOY + 9, TOY + GAP + 9}) == (loop.head, {to for _, to in loop.exits})
    assert [(loop, 3)] == candidates(function, place)


def test_a_function_that_hands_over_to_nobody_is_no_ring() -> None:
    """Nor is one whose samples are its own."""
    assert found(toy(ping="85ff 7505 9090909090 c3", pong=PONG)) is None
    machine = toy(ping=PING, pong=PONG)
    alone = Place(TOY, "ping", (TOY,), None, ())
    assert ring(machine, Code(machine, ARCH), alone) is None  # type: ignore[arg-type]


def at(stack: int) -> Sample:
    return Sample(TOY, 0, 0, False, (), {"rsp": stack})


def test_what_an_interrupt_passes_is_not_the_thread_s() -> None:
    """Interrupts have a stack of their own; a stray sample of there does not make it its own."""
    own = 0xFF00_0000_0001_0000
    tell = on_its_stacks([*(at(own + 16 * n) for n in range(20)), at(own - 16384)], ARCH)
    assert tell(at(own + 16000))
    assert not tell(at(own - 16))


def seen(ways: str) -> bool:
    """In user space (u), in a system call (s), in a page fault (f), or nobody knows where (?)."""
    machine = toy(entry_SYSCALL_64="c3", asm_exc_page_fault="c3", other="c3")
    samples = [
        Sample(TOY + GAP * "sf?u".index(way), n, 0, way == "u", (), {})
        for n, way in enumerate(ways)
    ]
    return comes_and_goes(machine, ARCH, samples)  # type: ignore[arg-type]


def test_who_is_seen_outside_between_stays_comes_and_goes() -> None:
    """Not who was outside before it came to where it is now."""
    assert seen("sssusssussssusss")
    assert seen("ffsfssfffsfs")
    assert not seen("uuuussssssssssss")
    assert not seen("sususussssssssssssssssss")
    assert not seen("sssssssssssssssu")
    assert not seen("ss?s?ss??s?sss?s")
    assert not seen("")
