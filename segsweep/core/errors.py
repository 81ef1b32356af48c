"""Errors meant for the user: the message is shown as it is, without a traceback, and the exit code is not 0."""

import difflib
from collections.abc import Iterable


class SegsweepError(Exception):
    """Something that the user can mend: the message says what, where, what was found and what is allowed.

    What was found may be anybody's: of a message no sign reaches a terminal that this would obey."""

    def __str__(self) -> str:
        return "\n".join(map(printable, super().__str__().split("\n")))


class ConfigError(SegsweepError):
    """The configuration is wrong; all mistakes are listed at once."""


class DataError(SegsweepError):
    """The data set, its split or its cache is not usable; the file, unit or key is named."""


class NotFiniteError(SegsweepError):
    """The loss became NaN or infinite; the step is named."""


class TaskError(SegsweepError):
    """A task's code does not keep to what it agreed with the engine; what it did is named, and what is wanted."""


def nearest(name: object, allowed: Iterable[str]) -> str:
    """`; did you mean x?` for the allowed name that is most like `name`, or nothing."""
    close = difflib.get_close_matches(str(name), list(allowed), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def printable(text: object) -> str:
    """Text of somebody else's on one line, without the signs that a terminal obeys."""
    return "".join(c if c.isprintable() else " " for c in str(text))
