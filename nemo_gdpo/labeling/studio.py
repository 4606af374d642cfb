"""Label Studio's formats: tasks, the labelling configuration, and annotations that come back.

Formats: labelstud.io/guide/tasks (tasks), /guide/export (annotations), /tags/pairwise (a result of
type `pairwise` with `value.selected`), /tags/choices, /tags/rating. `Pairwise` has no tie, so a
choice stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nemo_gdpo.errors import UserError
from nemo_gdpo.labeling.events import Answer, Asked, Outcome, normal_strength, normal_time
from nemo_gdpo.labeling.given_back import check_given, given
from nemo_gdpo.labeling.pairs import as_text
from nemo_gdpo.labeling.state import State

CONFIG = """\
<View>
  <Header value="Which response is better?"/>
  <Text name="prompt" value="$prompt" showLabels="false"/>
  <Pairwise name="better" toName="left,right"/>
  <View style="display: flex; gap: 1em">
    <View style="flex: 1; white-space: pre-wrap"><Text name="left" value="$left"/></View>
    <View style="flex: 1; white-space: pre-wrap"><Text name="right" value="$right"/></View>
  </View>
  <Header value="Or neither:" size="5"/>
  <Choices name="neither" toName="prompt" choice="single" showInline="true">
    <Choice value="tie"/>
    <Choice value="skip"/>
  </Choices>
  <Header value="How much better? (optional)" size="5"/>
  <Rating name="strength" toName="prompt" maxRating="3"/>
</View>
"""
"""The labelling configuration of a project."""
_REMEDY = "correct it in Label Studio and export again"


def tasks(asked: Iterable[Asked], state: State) -> list[dict[str, Any]]:
    """A task for each pair."""
    return [{"data": given(one, state, as_text)} for one in asked]


def answers_in(task: Mapping[str, Any], state: State, where: str) -> Iterator[Answer]:
    """The answers in a task that came back.

    Args:
        task: with its `data` and `annotations`.
        state: of the ledger.
        where: file and item, for messages.

    Raises:
        UserError: it is malformed, or of something else than what was given.
    """
    data, annotations = task.get("data"), task.get("annotations", [])
    if not isinstance(data, Mapping) or not isinstance(annotations, list):
        raise UserError(
            f"{where}: is no task of Label Studio's JSON export (data, annotations); export the "
            "project as JSON"
        )
    asked = check_given(data, state, as_text, where)
    for number, annotation in enumerate(annotations, start=1):
        place = f"{where}, annotation {number}"
        try:
            yield _answer(annotation, asked.question.pair, place)
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{place}: is malformed ({error}); {_REMEDY}") from None


def _answer(annotation: Mapping[str, Any], pair: str, place: str) -> Answer:
    given_by = annotation["completed_by"]
    user = given_by["id"] if isinstance(given_by, Mapping) else given_by
    if isinstance(user, bool) or not isinstance(user, int):
        raise ValueError(f"completed_by is {given_by!r}")
    stamp = annotation.get("updated_at") or annotation.get("created_at")
    outcome, strength = _said(annotation, place)
    time = None if stamp is None else normal_time(stamp)
    return Answer(pair, f"label-studio:{user}", outcome, "person", strength, time)


def _said(annotation: Mapping[str, Any], place: str) -> tuple[Outcome, float | None]:
    """Outcome and strength of an annotation."""
    if annotation.get("was_cancelled"):
        return "skip", None
    outcomes: list[Outcome] = []
    strength = None
    for result in annotation["result"]:
        kind, value = result["type"], result["value"]
        if kind == "pairwise":
            outcomes.append(_one_of(value["selected"], ("left", "right")))
        elif kind == "choices":
            outcomes += [_one_of(choice, ("tie", "skip")) for choice in value["choices"]]
        elif kind == "rating":
            strength = normal_strength(value["rating"])
        else:
            raise ValueError(f"it has a result of type {kind!r}")
    if len(outcomes) != 1:
        said = " and ".join(outcomes) or "neither a side nor tie nor skip"
        raise UserError(f"{place}: says {said}; {_REMEDY}")
    return outcomes[0], strength


def _one_of(value: Any, allowed: tuple[Outcome, ...]) -> Outcome:
    for outcome in allowed:
        if value == outcome:
            return outcome
    raise ValueError(f"{value!r} is none of {', '.join(allowed)}")
