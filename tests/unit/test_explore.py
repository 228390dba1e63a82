"""The search for a bad state, on a toy; and what becomes of models with errors."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kwhy.emulate import checkpoint, model, search
from kwhy.emulate.ground import Unfetched
from kwhy.emulate.shared import Shared
from kwhy.emulate.world import Mistake, Stopped, World
from kwhy.errors import InputError
from kwhy.report import explore

TOY = """
OPERATIONS = ("add", "double", "fail")
DEPTH = 9
RECIPE = {"add": "add one", "double": "double it"}

def add(world):
    world.value += 1

def double(world):
    world.value *= 2

def fail(world):
    world.stop("it would sleep")

def state(world):
    return world.value

def bad(world):
    return "it is 11" if world.value == 11 else None

def show(world):
    return [f"value {world.value}"]
"""


class Toy:
    """A world that is one number."""

    def __init__(self) -> None:
        self.value = 1

    def save(self) -> bytes:
        return self.value.to_bytes(8, "little")

    def load(self, state: bytes) -> None:
        self.value = int.from_bytes(state, "little") if state else 1

    def seal(self) -> None:
        pass

    def recall(self) -> None:
        return None

    def remember(self, make: Callable[[], bytes]) -> bytes:
        return make()

    def stop(self, why: str) -> None:
        raise Stopped(why)

    def missing(self, name: str) -> None:
        raise Mistake(f"the kernel has no symbol {name}")


def written(tmp_path: Path, text: str) -> model.Model:
    path = tmp_path / "toy.py"
    path.write_text(text)
    return model.load(path)


def world() -> World:
    return cast(World, Toy())


@pytest.mark.parametrize("jobs", [1, 2])
def test_shortest_sequence_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    """1, 2, 4, 5, 10, 11 is a shortest way from 1 to 11, also with several processes."""
    monkeypatch.setattr(search, "ALONE", 1)
    found = search.search(written(tmp_path, TOY), world(), depth=9, jobs=jobs)
    assert found.path is not None
    assert (5, 5, True, "it is 11") == (len(found.path), found.depth, found.complete, found.why)
    assert found.progress.stopped["it would sleep"] > 0


def kept(
    toy: model.Model, depth: int, start: Any = None, jobs: int = 1
) -> tuple[search.Outcome, list[Any]]:
    """A search, and where it was at the end of each level."""
    points: list[Any] = []
    found = search.search(
        toy, world(), depth=depth, start=start, jobs=jobs,
        keep=lambda point: points.append(deepcopy(point)),
    )  # fmt: skip
    return found, points


def test_a_search_goes_on_from_a_file(tmp_path: Path) -> None:
    """Stopped after two levels and taken up again it tells what it would have told."""
    toy, file = written(tmp_path, TOY), tmp_path / "toy.search"
    whole, _ = kept(toy, 9)
    _, points = kept(toy, 2)
    checkpoint.save(file, points[-1], toy.operations, {"model": toy.text})
    found, _ = kept(toy, 9, checkpoint.load(file, toy.operations, {"model": toy.text}))
    assert (whole.path, whole.complete) == (found.path, found.complete)
    assert whole.progress.levels == found.progress.levels
    assert whole.progress.transitions == found.progress.transitions
    assert 0o600 == file.stat().st_mode & 0o777


def test_an_interrupted_search_loses_nothing(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a level: what was found is kept, what was not expanded is left."""
    toy, file = written(tmp_path, TOY), tmp_path / "toy.search"
    points: list[checkpoint.Checkpoint] = []

    def stop(progress: checkpoint.Progress) -> None:
        if len(progress.levels) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search.search(toy, world(), depth=9, tell=stop, keep=points.append)
    checkpoint.save(file, points[-1], toy.operations, {})
    found, _ = kept(toy, 9, checkpoint.load(file, toy.operations, {}))
    assert search.search(toy, world(), depth=9).path == found.path


@pytest.mark.parametrize("damage", ["cut", "text", "other", "state", "deep"])
def test_a_damaged_search_is_refused(tmp_path: Path, damage: str) -> None:
    """One line, whatever is wrong with the file."""
    toy, file = written(tmp_path, TOY), tmp_path / "toy.search"
    _, points = kept(toy, 2)
    point = points[-1]
    if damage == "state":
        point.todo.append((("add",), b"odd"))
    if damage == "deep":
        point.level = 99
    checkpoint.save(file, point, toy.operations, {"model": "1"})
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-30])
    if damage == "text":
        file.write_text("no search")
    with pytest.raises(InputError):
        checkpoint.load(file, toy.operations, {"model": "2" if damage == "other" else "1"})


def test_a_page_that_only_this_process_may_fetch_is_fetched_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copies hand such states back; the outcome is the same."""
    monkeypatch.setattr(search, "ALONE", 8)

    class Sealed(Toy):
        sealed = False

        def seal(self) -> None:
            self.sealed = True

        def save(self) -> bytes:
            if self.sealed and self.value % 3 == 0:
                raise Unfetched("0x1000 would have to be fetched")
            return super().save()

    text = TOY.replace("world.value += 1", "world.value = (world.value + 7) % 251")
    toy = written(tmp_path, text.replace("*= 2", "= world.value * 2 % 251"))
    alone, several = (
        search.search(toy, cast(World, Sealed()), depth=12, jobs=jobs) for jobs in (1, 2)
    )
    assert alone.progress.levels == several.progress.levels
    assert alone.progress.stopped == several.progress.stopped
    assert (alone.path is None) == (several.path is None)


def test_several_processes_search_as_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same states, reached the same way, in the same order: whoever found them first."""
    monkeypatch.setattr(search, "ALONE", 1)
    monkeypatch.setattr(search, "LEAST", 2)
    text = TOY.replace("world.value += 1", "world.value = (world.value + 7) % 1009")
    text = text.replace("*= 2", "= world.value * 2 % 1009").replace("== 11", "< 0")
    toy = written(tmp_path, text)
    one, three = (kept(toy, 7, jobs=jobs)[1] for jobs in (1, 3))
    assert [point.todo for point in one] == [point.todo for point in three]
    assert [point.seen for point in one] == [point.seen for point in three]
    assert 7 == len(one)


def test_what_an_earlier_batch_has_found_is_known() -> None:
    """A later one has found nothing for it, whichever was told first."""
    shared = Shared()
    one, other = bytes(16), bytes(range(16))
    shared.add([one], 7)
    shared.add([one, other], 3)
    assert {one: 3, other: 3} == shared.hear()
    shared.add([other], 2)
    assert {one: 3, other: 2} == shared.hear()


def test_equal_states_have_equal_digests() -> None:
    """Also sets, whose order differs from run to run."""
    one, other = frozenset(["a", "b", "c"]), frozenset(["c", "b", "a"])
    assert checkpoint.digest((1, one)) == checkpoint.digest((1, other))
    assert checkpoint.digest((1, 2)) != checkpoint.digest((2, 1))


def test_a_search_that_is_too_shallow_says_so(tmp_path: Path) -> None:
    """No way of four steps leads there, and that is not the same as none at all."""
    found = search.search(written(tmp_path, TOY), world(), depth=4)
    assert (None, True, False) == (found.path, found.complete, found.exhausted)


def test_an_exhausted_search_says_so(tmp_path: Path) -> None:
    """When no new state is left, none is bad whatever the depth."""
    text = TOY.replace("world.value += 1", "world.value = 1").replace("*= 2", "= 2")
    found = search.search(written(tmp_path, text), world(), depth=9)
    assert (None, True) == (found.path, found.exhausted)


def test_replay_shows_each_state(tmp_path: Path) -> None:
    """The states on the way are those of the operations."""
    states = search.replay(written(tmp_path, TOY), world(), ("add", "double"))
    assert [["value 1"], ["value 2"], ["value 4"]] == states


def test_random_walks_find_it_too(tmp_path: Path) -> None:
    """Walking at random leads there, with no claim to be the shortest."""
    found = search.wander(written(tmp_path, TOY), world(), steps=20_000, depth=8)
    assert found.path is not None
    assert not found.complete


def test_report_tells_sequence_and_recipe(tmp_path: Path) -> None:
    """A person reads the steps, the states and how to do it live; JSON has the same."""
    toy = written(tmp_path, TOY)
    found = search.search(toy, world(), depth=9)
    assert found.path is not None
    states = search.replay(toy, world(), found.path)
    text = explore.render(toy.recipe, found, states, "6.12").text().plain
    assert "found: 5 steps, no shorter sequence leads there" in text
    assert "add one" in text
    answer = explore.as_json("toy", toy.recipe, found, states, "6.12")
    assert (list(found.path), True) == (answer["path"], answer["shortest"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("OPERATIONS = (", ":1: '(' was never closed"),
        ("x = 1 / 0", ":1: division by zero"),
        ("x = 1", "OPERATIONS has to list"),
        ("OPERATIONS = ('a',)", "there is no function a(world)"),
        (TOY.replace("DEPTH = 9", "DEPTH = 'many'"), "DEPTH has to be a number"),
        (TOY.replace('{"add"', '5 # {"add"'), "RECIPE has to tell"),
        ("import sys\nsys.exit(0)", ":2: a model must not end the program\n    sys.exit(0)\n    ^"),
        ("x = '\0'", "null bytes"),
        ("def f():\n\treturn (1", "return (1\n    \t       ^"),
    ],
)
def test_models_with_errors_are_refused(tmp_path: Path, text: str, said: str) -> None:
    """One line says what is wrong, and where."""
    with pytest.raises(InputError) as caught:
        written(tmp_path, text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("world.value += nothing", "name 'nothing' is not defined"),
        ("exit(0)", "a model must not end the program"),
        ("world.missing('x')", "the kernel has no symbol x"),
        ("while True: pass", "it has not returned for 0.2 s"),
    ],
)
def test_an_error_in_an_operation_names_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, said: str
) -> None:
    """Line, source and a caret, no traceback; the search ends with it."""
    monkeypatch.setattr(model, "PATIENCE", 0.2)
    toy = written(tmp_path, TOY.replace("world.value += 1", step))
    with pytest.raises(InputError) as caught:
        search.search(toy, world(), depth=3)
    lines = str(caught.value).splitlines()
    assert f":7: {said}" in lines[0]
    assert step in lines[1]
    assert "    ^" in lines[2]


def test_what_could_not_be_executed_is_no_proof(tmp_path: Path) -> None:
    """A search whose steps all stop has searched nothing; one of which some do says so."""
    text = TOY.replace("world.value += 1", "world.stop('it would print')")
    nothing = search.search(
        written(tmp_path, text.replace("world.value *= 2", "world.stop('it would sleep')")),
        world(), depth=3,
    )  # fmt: skip
    assert not nothing.exhausted
    assert "not one of the operations" in explore.render({}, nothing, [], "6.12").text().plain
    some = search.search(written(tmp_path, text.replace("*= 2", "= 2")), world(), depth=3)
    assert some.exhausted
    assert "could not be executed" in explore.render({}, some, [], "6.12").text().plain


def test_a_state_that_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    """A list is no state."""
    toy = written(tmp_path, TOY.replace("return world.value\n", "return [world.value]\n"))
    with pytest.raises(InputError, match="hashable"):
        toy.state(cast(Any, SimpleNamespace(value=1)))
