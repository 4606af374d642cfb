"""Errors that a user can mend, and the exit statuses of the command line."""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_REQUEUE = 75
"""Stopped by a signal after a checkpoint (sysexits.h EX_TEMPFAIL): requeue the job."""


class UserError(ValueError):
    """The configuration or the input is wrong.

    The message is one line that says what is wrong, where, and how to mend it. The command line
    prints it without a traceback and exits with `EXIT_USER_ERROR`.
    """
