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

import hashlib
import linecache
import traceback
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from kwhy.emulate.ground import Unfetched
from kwhy.emulate.world import Stopped, World
from kwhy.errors import FATAL, InputError, KwhyError

DEPTH = 12


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
        if hasattr(self.module, "show"):
            return [str(line) for line in self._run("show", world)]
        return [repr(self._run("state", world))]

    def _run(self, name: str, world: World) -> Any:
        function: Callable[[World], Any] = getattr(self.module, name)
        try:
            return function(world)
        except (Stopped, Unfetched, *FATAL):
            raise
        except KwhyError as error:
            raise self._told(error) from error
        except Exception as error:
            raise self._told(error) from error

    def _told(self, error: Exception) -> InputError:
        """One line: where in the model, what, and the source with a caret."""
        frames = traceback.extract_tb(error.__traceback__)
        mine = [frame for frame in frames if frame.filename == str(self.path)]
        if not mine:
            return InputError(f"{self.path}: {error}")
        frame = mine[-1]
        line = linecache.getline(frame.filename, frame.lineno or 0).rstrip()
        caret = " " * (frame.colno or 0) + "^"
        what = str(error) or type(error).__name__
        return InputError(f"{self.path}:{frame.lineno}: {what}\n    {line}\n    {caret}")


def load(path: Path) -> Model:
    """Read a model. Raises InputError with the line and a caret for one with errors."""
    try:
        text = path.read_text("utf-8")
        code = compile(text, str(path), "exec")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except SyntaxError as error:
        caret = " " * max(0, (error.offset or 1) - 1) + "^"
        line = (error.text or "").rstrip()
        raise InputError(f"{path}:{error.lineno}: {error.msg}\n    {line}\n    {caret}") from None
    except ValueError as error:
        raise InputError(f"{path}: is no text: {error}") from None
    module = ModuleType(path.stem)
    module.__file__ = str(path)
    try:
        exec(code, module.__dict__)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise InputError(f"{path}:{frame.lineno}: {error}") from None
    operations = getattr(module, "OPERATIONS", None)
    if not isinstance(operations, (tuple, list)) or not operations:
        raise InputError(f"{path}: OPERATIONS has to list the names of the model's operations")
    for name in (*operations, "state", "bad"):
        if not callable(getattr(module, str(name), None)):
            raise InputError(f"{path}: there is no function {name}(world)")
    return Model(
        path,
        tuple(str(name) for name in operations),
        module,
        int(getattr(module, "DEPTH", DEPTH)),
        dict(getattr(module, "RECIPE", {})),
        hashlib.sha256(text.encode()).hexdigest(),
    )
