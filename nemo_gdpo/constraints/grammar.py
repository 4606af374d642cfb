"""The grammar, checked by xgrammar: the library that vLLM samples by.

It is in the generation environment only, where answers are checked as they are written; whoever
reads rows later finds the verdict in them.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from nemo_gdpo.errors import UserError

KEY = "constraints.grammar"
CHECKER = "xgrammar"


def has_checker() -> bool:
    """Whether this environment has the library."""
    return importlib.util.find_spec(CHECKER) is not None


def read_grammar(path: str) -> str:
    """The text of a grammar's file.

    Raises:
        UserError: it cannot be read, or is empty.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{KEY}: {path} cannot be read ({reason}); correct the path") from None
    if not text.strip():
        raise UserError(f"{KEY}: {path} is empty; write a grammar with a rule named root")
    return text


class GrammarCheck:
    """A compiled grammar."""

    def __init__(self, text: str) -> None:
        """Compile.

        Args:
            text: GBNF, with a rule named root.

        Raises:
            UserError: it is no grammar, or there is no xgrammar here.
        """
        if not has_checker():
            raise UserError(
                f"{KEY}: answers are checked with {CHECKER}, which this environment does not have; "
                "start the command with the Python of the generation environment"
            )
        import xgrammar

        self._matcher: Any = xgrammar.GrammarMatcher
        try:
            compiler = xgrammar.GrammarCompiler(xgrammar.TokenizerInfo([]), cache_enabled=False)
            self._compiled = compiler.compile_grammar(xgrammar.Grammar.from_ebnf(text))
        except RuntimeError as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"{KEY}: this is no grammar ({lines[-1][:300]}); correct the file"
            ) from None

    def accepts(self, text: str) -> bool:
        """Whether the grammar's root is the whole text."""
        matcher = self._matcher(self._compiled, terminate_without_stop_token=True)
        return bool(matcher.accept_string(text)) and bool(matcher.is_terminated())
