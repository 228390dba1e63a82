"""Progress on stderr: a line that is rewritten on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO


class Step:
    """One thing being done; ``percent`` may be told as often as one likes."""

    def __init__(self, progress: "Progress", text: str) -> None:
        self._progress = progress
        self._text = text
        self._shown = -1

    def percent(self, value: float) -> None:
        """Show how much is done (0 to 100); only whole steps are written."""
        step = 1 if self._progress.tty else 25
        shown = int(value) // step * step
        if shown > self._shown:
            self._shown = shown
            if shown or self._progress.tty:
                self._progress.write(f"{self._text} {shown:3} %", final=False)


class Progress:
    """Says what takes long. ``Progress(None)`` says nothing."""

    def __init__(self, stream: TextIO | None = sys.stderr) -> None:
        self._stream = stream
        self.tty = bool(stream and stream.isatty())

    @contextmanager
    def step(self, text: str) -> Iterator[Step]:
        """Announce ``text``; when the block ends, say how long it took."""
        start = time.monotonic()
        self.write(f"{text} ...", final=False)
        yield Step(self, text)
        self.write(f"{text} ({time.monotonic() - start:.1f} s)", final=True)

    def write(self, text: str, final: bool) -> None:
        """A line; on a terminal the next one overwrites it unless ``final``."""
        if self._stream is None:
            return
        if self.tty:
            self._stream.write(f"\r\x1b[K{text[:120]}" + ("\n" if final else ""))
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()
