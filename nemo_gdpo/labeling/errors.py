"""Errors of the ledger that are no mistake of the user's."""

from __future__ import annotations

from nemo_gdpo.errors import RunError


class LedgerError(RunError):
    """The ledger's file or the server of annotations failed; what was recorded is kept."""
