"""One line on stderr that says how far something is."""

import sys
import time
from collections.abc import Callable
from typing import Union

#: What is called with a name, how much is done, how much there is and a text.
Callback = Callable[[str, int, int, str], object]
Progress = Union[bool, Callback]

# Seconds between updates of the line.
_PACE = 0.2


class _Line:
    """Rewrites one line; a new name starts another."""

    def __init__(self) -> None:
        self._name = ""
        self._shown = 0.0
        self._width = 0

    def __call__(self, name: str, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        if name == self._name and done < total and now - self._shown < _PACE:
            return
        if self._name and name != self._name:
            self.close()
        self._name, self._shown = name, now
        line = f"{name:<12} {done}/{total}" + (f"  {text}" if text else "")
        sys.stderr.write("\r" + line.ljust(self._width))
        sys.stderr.flush()
        self._width = len(line)

    def close(self) -> None:
        """Ends the line."""
        if self._name:
            sys.stderr.write("\n")
            sys.stderr.flush()
        self._name, self._width = "", 0


def callback(progress: Progress) -> Callback | None:
    """What reports to the user: nothing, a line on a terminal or in a notebook, or the user's own callable."""
    if callable(progress):
        return progress
    seen = sys.stderr is not None and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    return _Line() if progress and seen else None


def close(reporter: Callback | None) -> None:
    """Ends the line, if there is one."""
    if isinstance(reporter, _Line):
        reporter.close()
