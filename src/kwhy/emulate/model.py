"""Models for ``kwhy explore``: a short Python file about one data structure of the kernel.

It defines

``OPERATIONS``      names of its functions ``op(world)``, each one step: calls of kernel functions
``prepare(world)``  optional: finds the structure, allocates arguments; runs once
``state(world)``    what of the structure counts (hashable): two states that agree are one
``bad(world)``      a sentence if this state is one that must not be, else None
``show(world)``     optional: the state in lines of text
``RECIPE``          optional: by operation, how it is done from user space
``DEPTH``           optional: how many steps to search at most
"""

import contextlib
import hashlib
import linecache
import signal
import threading
import traceback
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from kwhy.emulate.ground import Unfetched
from kwhy.emulate.world import Mistake, Stopped, World
from kwhy.errors import FATAL, InputError, KwhyError

DEPTH = 12
PATIENCE = 60.0  # s that a model's functions may take for a batch of states


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model; its functions raise InputError that names the line at fault."""

    path: Path
    operations: tuple[str, ...]
    module: ModuleType
    depth: int
    recipe: dict[str, str]
    text: str
    """A digest of the file's text."""

    def prepare(self, world: World) -> None:
        """Run the model's preparation, if it has one."""
        if hasattr(self.module, "prepare"):
            with patience():
                self._run("prepare", world)

    def step(self, operation: str, world: World) -> None:
        """Do one operation. Raises Stopped when it cannot be done offline."""
        self._run(operation, world)

    def state(self, world: World) -> Hashable:
        """What counts of the state that ``world`` is in."""
        found = self._run("state", world)
        if not isinstance(found, Hashable):
            raise InputError(f"{self.path}: state() has to give something hashable, as a tuple")
        return found

    def bad(self, world: World) -> str | None:
        """Why the state that ``world`` is in must not be."""
        found = self._run("bad", world)
        return None if not found else str(found)

    def show(self, world: World) -> Sequence[str]:
        """The state in words."""
        if not hasattr(self.module, "show"):
            return [repr(self._run("state", world))]
        return [str(line) for line in self._run("show", world, list)]

    def _run(
        self, name: str, world: World, made: Callable[[Any], Any] = lambda found: found
    ) -> Any:
        function: Callable[[World], Any] = getattr(self.module, name)
        try:
            return made(function(world))
        except Mistake as error:
            raise self._told(error) from error
        except (Stopped, Unfetched, *FATAL):
            raise
        except (Exception, SystemExit) as error:
            raise self._told(error) from error

    def _told(self, error: BaseException) -> InputError:
        """One line: where in the model, what, and the source with a caret."""
        frames = traceback.extract_tb(error.__traceback__)
        mine = [frame for frame in frames if frame.filename == str(self.path)]
        if not mine:
            return InputError(f"{self.path}: {_what(error)}")
        frame = mine[-1]
        line = linecache.getline(frame.filename, frame.lineno or 0).rstrip()
        return _at(self.path, frame.lineno, _what(error), line, frame.colno or 0)


class _Impatient(KwhyError):
    """Raised in a model's function that does not return."""


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """A model's functions that take too long meanwhile end as those with errors do."""
    if threading.current_thread() is not threading.main_thread():
        yield  # it has no signals
        return

    def stop(_number: int, _frame: object) -> None:
        raise _Impatient(f"it has not returned for {PATIENCE:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _what(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return "a model must not end the program"
    return str(error) or type(error).__name__


def _at(path: Path, number: int | None, what: str, line: str, column: int) -> InputError:
    """One line, the source and a caret below the character at ``column``."""
    indent = "".join("\t" if character == "\t" else " " for character in line[:column])
    return InputError(f"{path}:{number}: {what}\n    {line}\n    {indent.ljust(column)}^")


def load(path: Path) -> Model:
    """Read a model. Raises InputError with the line and a caret for one with errors."""
    try:
        text = path.read_text("utf-8")
        code = compile(text, str(path), "exec")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except SyntaxError as error:
        if error.lineno is None:
            raise InputError(f"{path}: {error.msg}") from None
        line, column = (error.text or "").rstrip(), max(0, (error.offset or 1) - 1)
        raise _at(path, error.lineno, error.msg, line, column) from None
    except ValueError as error:
        raise InputError(f"{path}: is no text: {error}") from None
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        exec(code, module.__dict__)
    except (Exception, SystemExit) as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        line = linecache.getline(str(path), frames[-1].lineno or 0).rstrip()
        column = frames[-1].colno or 0
        raise _at(path, frames[-1].lineno, _what(error), line, column) from None
    operations = getattr(module, "OPERATIONS", None)
    if not isinstance(operations, (tuple, list)) or not operations:
        raise InputError(f"{path}: OPERATIONS has to list the names of the model's operations")
    for name in (*operations, "state", "bad"):
        if not callable(getattr(module, str(name), None)):
            raise InputError(f"{path}: there is no function {name}(world)")
    depth, recipe = getattr(module, "DEPTH", DEPTH), getattr(module, "RECIPE", {})
    if not isinstance(depth, int) or depth < 1:
        raise InputError(f"{path}: DEPTH has to be a number of steps, 1 or more")
    if not isinstance(recipe, Mapping):
        raise InputError(f"{path}: RECIPE has to tell by operation how it is done")
    return Model(
        path,
        tuple(str(name) for name in operations),
        module,
        depth,
        {str(name): str(text) for name, text in recipe.items()},
        hashlib.sha256(text.encode()).hexdigest(),
    )
