"""The search for a bad state, on a toy; and what becomes of models with errors."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kwhy.emulate import model, search
from kwhy.emulate.world import Stopped, World
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
        return bytes([self.value & 0xFF])

    def load(self, state: bytes) -> None:
        self.value = state[0] if state else 1

    def stop(self, why: str) -> None:
        raise Stopped(why)


def written(tmp_path: Path, text: str) -> model.Model:
    path = tmp_path / "toy.py"
    path.write_text(text)
    return model.load(path)


def world() -> World:
    return cast(World, Toy())


@pytest.mark.parametrize("jobs", [1, 2])
def test_shortest_sequence_is_found(tmp_path: Path, jobs: int) -> None:
    """1, 2, 4, 5, 10, 11 is a shortest way from 1 to 11, also with several processes."""
    found = search.search(written(tmp_path, TOY), world(), depth=9, jobs=jobs)
    assert found.path is not None
    assert (5, 5, True, "it is 11") == (len(found.path), found.depth, found.complete, found.why)
    assert found.progress.stopped["it would sleep"] > 0


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
    ],
)
def test_models_with_errors_are_refused(tmp_path: Path, text: str, said: str) -> None:
    """One line says what is wrong, and where."""
    with pytest.raises(InputError) as caught:
        written(tmp_path, text)
    assert said in str(caught.value)


def test_an_error_in_an_operation_names_its_line(tmp_path: Path) -> None:
    """Line, source and a caret, no traceback."""
    toy = written(tmp_path, TOY.replace("world.value += 1", "world.value += nothing"))
    with pytest.raises(InputError) as caught:
        toy.step("add", world())
    lines = str(caught.value).splitlines()
    assert ":7: name 'nothing' is not defined" in lines[0]
    assert "world.value += nothing" in lines[1]
    assert "^" == lines[2].strip()


def test_a_state_that_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    """A list is no state."""
    toy = written(tmp_path, TOY.replace("return world.value\n", "return [world.value]\n"))
    with pytest.raises(InputError, match="hashable"):
        toy.state(cast(Any, SimpleNamespace(value=1)))
