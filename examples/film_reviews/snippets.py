"""Movie-review snippets with human sentiment ratings, out of the vaderSentiment source package.

Hutto & Gilbert (2014), "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social
Media Text", ICWSM: 10,605 snippets, each rated from -4 (extremely negative) to +4 by 15 to 29
people. The archive inside the archive is read in memory; nothing of it is written to disk.

What the files are like (measured):

* both are UTF-8 with CRLF line ends; the two agree on ids and means;
* rows come in batches of 30 rated by the same people, and people differ between batches (how the
  columns of a batch's first 15 rows deviate correlates at 0.76 with its last 15, at 0.02 with the
  next batch). Favourable reviews come first and a batch is nearly all of one kind, so good and bad
  snippets have different raters and can hardly ever be compared rater by rater;
* the text lost its hyphens and dashes to spaces, doubles apostrophes for quotation marks and holds
  a few HTML entities: `clean_text` restores what can be restored.
"""

from __future__ import annotations

import html
import io
import json
import re
import tarfile
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from nemo_gdpo.errors import UserError

DOWNLOAD = "pip download --no-deps --no-binary :all: vaderSentiment==3.3.2 -d {}"
_INNER = "/additional_resources/hutto_ICWSM_2014.tar.gz"
_TEXTS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_anonDataRatings.txt"
_MAX_MEMBER_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Snippet:
    """One snippet and its ratings, one a person, from -4 to 4."""

    number: int
    text: str
    ratings: tuple[int, ...]

    @property
    def mean(self) -> float:
        return float(self.exact_mean)

    @property
    def exact_mean(self) -> Fraction:
        return Fraction(sum(self.ratings), len(self.ratings))


def read_snippets(sdist_path: str | Path) -> list[Snippet]:
    """Read all snippets, cleaned, in file order.

    Raises:
        UserError: the package is missing (the message has the command that fetches it) or
            not what it should be.
    """
    path = Path(sdist_path)
    fetch = DOWNLOAD.format(path.parent)
    if not path.is_file():
        raise UserError(f"{path} does not exist; fetch it with `{fetch}`")
    again = f"fetch it again with `{fetch}`"
    try:
        with tarfile.open(path, "r:gz") as outer:
            names = [name for name in outer.getnames() if name.endswith(_INNER)]
            if len(names) != 1:
                raise UserError(f"{path}: holds no {_INNER.lstrip('/')}; {again}")
            inner_bytes = _member(outer, names[0])
        with tarfile.open(fileobj=io.BytesIO(inner_bytes), mode="r:gz") as inner:
            texts = _member(inner, _TEXTS).decode("utf-8")
            ratings = _member(inner, _RATINGS).decode("utf-8")
    except UserError:
        raise
    except (tarfile.TarError, OSError, EOFError, KeyError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not the vaderSentiment source package ({error}); {again}"
        ) from None
    return parse_snippets(texts, ratings, str(path))


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.getmember(name)
    file = archive.extractfile(member) if member.isfile() else None
    if file is None or member.size > _MAX_MEMBER_BYTES:
        raise tarfile.TarError(f"{name} is not a regular file of at most {_MAX_MEMBER_BYTES} bytes")
    return file.read()


def parse_snippets(texts: str, ratings: str, source: str) -> list[Snippet]:
    """Join the two tables: `id TAB mean TAB text` and `id TAB mean TAB deviation TAB [ratings]`."""
    text_rows, rating_rows = texts.splitlines(), ratings.splitlines()
    if not text_rows or len(text_rows) != len(rating_rows):
        raise UserError(
            f"{source}: {len(text_rows)} texts but {len(rating_rows)} rows of ratings; fetch it "
            "again"
        )
    snippets = []
    for index, (text_row, rating_row) in enumerate(zip(text_rows, rating_rows, strict=True)):
        snippets.append(_snippet(text_row, rating_row, f"{source}, snippet {index + 1}"))
    return snippets


def _snippet(text_row: str, rating_row: str, where: str) -> Snippet:
    text_cells, rating_cells = text_row.split("\t"), rating_row.split("\t")
    if len(text_cells) != 3 or len(rating_cells) != 4 or text_cells[0] != rating_cells[0]:
        raise UserError(
            f"{where}: the columns are not id, mean, text and id, mean, deviation, ratings; fetch "
            "it again"
        )
    try:
        given, mean, values = int(text_cells[0]), float(text_cells[1]), json.loads(rating_cells[3])
    except ValueError:
        raise UserError(f"{where}: a number does not read as one; fetch it again") from None
    if (
        not isinstance(values, list)
        or not values
        or any(type(v) is not int or not -4 <= v <= 4 for v in values)
    ):
        raise UserError(f"{where}: ratings must be whole numbers from -4 to 4; fetch it again")
    snippet = Snippet(given, clean_text(text_cells[2]), tuple(values))
    if abs(snippet.mean - mean) > 1e-6:
        raise UserError(
            f"{where}: its ratings average {snippet.mean:g}, its mean says {mean:g}; fetch it again"
        )
    return snippet


def clean_text(text: str) -> str:
    """Undo what can be undone.

    Entities become characters, '' becomes ", quotation marks around a whole snippet go; three or
    more spaces stood for a dash and become " - "; other runs of white space become one space.
    Hyphens inside words ("co writer") are lost for good.
    """
    text = unicodedata.normalize("NFC", html.unescape(text)).replace("''", '"')
    text = re.sub(r"(?<=\S) {3,}(?=\S)", " - ", text)
    text = re.sub(r"\s+", " ", text).strip()
    inside = re.sub(r"\w'\w", "", text[1:-1])  # the apostrophe of "it's" is not a quotation mark
    if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"" and text[0] not in inside:
        text = text[1:-1].strip()
    return text
