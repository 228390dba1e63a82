"""The ways out of a loop: also to sleep."""

from tests.unit.flow_build import ARCH, TOY, toy

from kwhy.diagnose.spin_frames import Place
from kwhy.diagnose.spin_loop import Watched
from kwhy.diagnose.spin_watch import Seen
from kwhy.flow.cfg import Code
from kwhy.flow.loops import loops

# test eax, eax; jne on; (call) nop; on: jmp back
CODE = "85c0 7503 0f1f00 ebf7"


def test_to_sleep_is_a_way_out() -> None:
    """It stays in the loop for ever, but does not burn the processor there."""
    function = Code(toy(thread=CODE), ARCH).function(TOY)
    (loop,) = loops(function)
    inner = TOY + 4
    for sleeps, ways in ((frozenset[int](), []), (frozenset([inner]), [(TOY, inner)])):
        watched = Watched(function, loop, Place(TOY, "thread", (TOY,), None, ()), 1, sleeps=sleeps)
        watched.hits = {inner: Seen([], 0, 0, None)}
        assert ways == watched.ways_out()
