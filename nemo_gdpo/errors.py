"""Errors that end a command in one line, and the exit statuses of the command line."""

from __future__ import annotations

from typing import ClassVar

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_REQUEUE = 75
"""Stopped by a signal after a checkpoint (sysexits.h EX_TEMPFAIL): requeue the job."""
EXIT_INTERRUPTED = 130
"""Ended at once by a second Ctrl-C, or by any signal where there is nothing to go on with."""


class UserError(ValueError):
    """The configuration or the input is wrong.

    The message is one line that says what is wrong, where, and how to fix it. The command line
    prints it without a traceback and exits with `status`.
    """

    status: ClassVar[int] = EXIT_USER_ERROR
    agreed: bool = False
    """Whether every rank of a run raises it alike, so that one of them speaks for all."""


class LoneError(UserError):
    """One of several ranks refuses the run, and the others did not hear it."""


class RunError(RuntimeError):
    """The disk, a server, an engine or the numbers failed; not a mistake of the user's.

    The message is one line that says what, and what is safe. Packages derive their own from it.
    """

    status: ClassVar[int] = EXIT_FAILED
    agreed: bool = False
    """Whether every rank of a run raises it alike, so that one of them speaks for all."""


class Stopped(BaseException):
    """A signal asked to stop; everything that should be kept is on disk.

    No `Exception`: a signal's handler may raise it anywhere, and nothing should take it for a
    failure. The message is one line, or empty where whoever catches it says more.
    """

    status: ClassVar[int] = EXIT_REQUEUE
    agreed: bool = False
    """Whether every rank of a run raises it alike, at the same place."""


class Interrupted(Stopped):
    """A signal ended what has nothing to keep and nothing to go on with."""

    status: ClassVar[int] = EXIT_INTERRUPTED
