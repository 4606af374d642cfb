"""Templates that write the day: their clock is made to stand still.

Llama 3's template writes today's date into every conversation. What was rendered on two days would
differ in silence, so the day is a setting, recorded with what was rendered.
"""

from __future__ import annotations

import datetime
import json
import re

from nemo_gdpo.errors import UserError

_CLOCK = "strftime_now"
"""What a template calls to write the date; transformers provides it."""
_CALL = re.compile(rf"{_CLOCK}\s*\(")
_CALL_WITH_FORMAT = re.compile(rf"{_CLOCK}\s*\(\s*(['\"])((?:(?!\1)[^\\])*)\1\s*\)")


def has_clock(template: object) -> bool:
    """Whether what a template writes depends on the day."""
    return _CLOCK in str(template)  # or of several named ones


def today() -> str:
    """The day, as 2026-01-31."""
    return datetime.date.today().isoformat()


def stopped_clock(template: str, date: str) -> str:
    """The template, whose clock shows one day.

    transformers passes no functions on, so each format that the template asks for is written out
    before it in the template's own language. The line ends in a new line, which Jinja drops after
    a block.

    Args:
        template: with or without a clock.
        date: ISO date.

    Raises:
        UserError: the template works its formats out.
    """
    if not has_clock(template):
        return template
    calls = list(_CALL_WITH_FORMAT.finditer(template))
    if len(_CALL.findall(template)) != len(calls):
        raise UserError(
            f"chat template: it calls {_CLOCK} with a format that is not written out, so its "
            "date cannot be kept; write the format, or the date, into the template"
        )
    day = datetime.datetime.fromisoformat(date)
    known = json.dumps({asked: day.strftime(asked) for asked in sorted({c[2] for c in calls})})
    return f"{{% macro {_CLOCK}(format) %}}{{{{ {known}[format] }}}}{{% endmacro %}}\n{template}"
