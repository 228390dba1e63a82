"""Cycles and the ends of chains: what is a deadlock and what is a mere queue."""

from kwhy.diagnose.hang.claims import Claim
from kwhy.diagnose.hang.graph import build


def waits(
    task: int, *owners: int, behind: tuple[int, ...] = (), maybe: tuple[int, ...] = ()
) -> Claim:
    return Claim(
        task, "mutex", 0x1000, "on wait_list", "f", 0, owners=owners, sure="observed",
        behind=behind, candidates=maybe,
    )  # fmt: skip


def graph_of(*claims: Claim) -> dict[int, Claim]:
    return {claim.task: claim for claim in claims}


def test_queue_behind_a_busy_owner_is_no_cycle() -> None:
    """Two waiters of one owner: no deadlock, and both chains end at the owner."""
    found = build(graph_of(waits(1, 9), waits(2, 9)), [1, 2])
    assert () == found.cycles
    assert {1: 9, 2: 9} == found.ends


def test_inversion_and_its_victim() -> None:
    """Two tasks that wait for each other are one cycle; the third stands behind them."""
    found = build(graph_of(waits(1, 2), waits(2, 1), waits(3, 1)), [1, 2, 3])
    assert [{1, 2}] == [set(cycle) for cycle in found.cycles]
    assert 0 == found.cycle_of[found.ends[3]]


def test_cycle_is_told_in_the_order_of_the_waits() -> None:
    """Each member waits for the next."""
    claims = graph_of(waits(1, 3), waits(3, 5), waits(5, 2), waits(2, 1))
    (cycle,) = build(claims, [1]).cycles
    following = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    assert {task: claim.owners[0] for task, claim in claims.items()} == following


def test_task_that_waits_for_itself() -> None:
    """A lock taken twice by the same task."""
    assert ((7,),) == build(graph_of(waits(7, 7)), [7]).cycles


def test_likely_holder_makes_only_a_possible_cycle() -> None:
    """A reader that may hold the lock proves nothing."""
    found = build(graph_of(waits(1, 2), waits(2, maybe=(1,))), [1])
    assert () == found.cycles
    assert [{1, 2}] == [set(cycle) for cycle in found.possible]


def test_reader_queued_behind_a_writer() -> None:
    """Who takes a lock for reading twice, a writer queued in between, waits for itself."""
    found = build(graph_of(waits(1, behind=(2,)), waits(2, 1)), [1])
    assert [{1, 2}] == [set(cycle) for cycle in found.cycles]


def test_a_proven_cycle_is_not_told_again_as_a_possible_one() -> None:
    """More candidates within a proven cycle add nothing."""
    found = build(graph_of(waits(1, 2, maybe=(2,)), waits(2, 1)), [1])
    assert 1 == len(found.cycles)
    assert () == found.possible


def one_of(task: int, *others: int, complete: bool = True, timed: bool = False) -> Claim:
    """A wait that any of ``others`` can end."""
    return Claim(
        task, "pipe-read", task, "on the pipe's wait queue", "f", 0, any_of=others,
        complete=complete, timed=timed,
    )  # fmt: skip


def test_all_who_could_end_a_wait_are_stuck() -> None:
    """A child reads a pipe that only it and its waiting parent can write to."""
    found = build(graph_of(one_of(1, 2), one_of(2, 1, 2)), [1, 2])
    assert [{1, 2}] == [set(cycle) for cycle in found.cycles]


def test_one_who_could_end_a_wait_is_free() -> None:
    """Of two writers one sleeps for something else: nothing is stuck for ever."""
    found = build(graph_of(one_of(1, 2, 3), one_of(2, 1)), [1, 2])
    assert () == found.cycles
    assert () == found.possible


def test_others_than_those_known_may_end_a_wait() -> None:
    """Not everybody with the other end is known, so that nothing is proven."""
    assert () == build(graph_of(one_of(1, 2, complete=False), one_of(2, 1)), [1]).cycles


def test_a_wait_with_a_time_limit_is_no_deadlock() -> None:
    """It goes on by itself, and frees who waits for it."""
    found = build(graph_of(one_of(1, 2), one_of(2, 1, timed=True)), [1])
    assert () == found.cycles
    assert () == found.possible


def test_lock_and_pipe_make_a_cycle() -> None:
    """The owner of a lock waits for data that only the lock's waiter can send."""
    found = build(graph_of(waits(1, 2), one_of(2, 1)), [1])
    assert [{1, 2}] == [set(cycle) for cycle in found.cycles]


def test_a_chain_follows_the_only_one_at_the_far_end() -> None:
    """Reader, writer, and whoever has the lock that the writer wants."""
    found = build(graph_of(one_of(1, 2), waits(2, 3)), [1])
    assert {1: 3} == found.ends


def crowd(tasks: range, *free: int) -> dict[int, Claim]:
    """Each of ``tasks`` waits for any of all of them and of ``free``: one set for all waits."""
    users = (*tasks, *free)
    return {
        task: Claim(
            task, "pipe-read", 0x1000, "on the pipe's wait queue", "f", 0, any_of=users,
            complete=True,
        )
        for task in tasks
    }  # fmt: skip


def test_a_crowd_that_waits_for_itself_is_stuck() -> None:
    """One cycle of tasks alone; the set that they share has no place in it."""
    found = build(crowd(range(1, 40)), range(1, 40))
    (cycle,) = found.cycles
    assert set(cycle) <= set(range(1, 40))
    assert {found.cycle_of[found.ends[task]] for task in range(1, 40)} == {0}


def test_a_crowd_with_one_that_is_free_is_not_stuck() -> None:
    """Neither are those who wait for a lock that one of the crowd owns."""
    claims = crowd(range(1, 40), 99) | graph_of(waits(50, 1), waits(51, 50))
    found = build(claims, [1, 51])
    assert () == found.cycles
    assert () == found.possible
    assert {1: 1, 51: 1} == found.ends


def test_all_that_a_crowd_may_wait_for_is_reached_and_nothing_else() -> None:
    """No set is taken for a task."""
    behind = Claim(1, "mutex", 0x1000, "on wait_list", "f", 0, candidates=tuple(range(10, 30)))
    assert {1, *range(10, 30)} == build(graph_of(behind), [1]).reached([1])


def test_waits_that_end_by_themselves_can_go_round() -> None:
    """No deadlock; the chain of whoever stands behind them ends at one of that round."""
    claims = graph_of(one_of(1, 2, timed=True), one_of(2, 1, timed=True), waits(3, 1))
    found = build(claims, [3])
    assert () == found.cycles
    assert found.ends[3] in (1, 2)


def test_a_long_chain_into_a_long_ring() -> None:
    """As many as a machine has tasks, in no more time than it takes to name them."""
    ring = [waits(n, n % 20_000 + 1) for n in range(1, 20_001)]
    chain = [waits(n, n - 1) for n in range(20_001, 40_001)]
    found = build(graph_of(*ring, *chain), [40_000])
    assert [20_000] == [len(cycle) for cycle in found.cycles]
    assert 0 == found.cycle_of[found.ends[40_000]]
