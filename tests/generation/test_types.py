"""Requests and answers survive a way through JSON, as Ray and files carry them."""

from __future__ import annotations

import json
import pickle

from nemo_gdpo.generation.types import Completed, Request, Sample

from .fakes import answer, request


def test_through_json() -> None:
    one = request(prompt=[{"role": "user", "content": "hi"}], stop=("\n",), logprobs="tokens")
    assert Request.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    samples = (
        Sample("x", (3, 1), "stop", 1, 2, -1.5, (-1.0, -0.5)),
        Sample("y", None, "length", None, 4),
    )
    done = Completed(one, samples)
    assert Completed.from_dict(json.loads(json.dumps(done.to_dict()))) == done


def test_through_another_process() -> None:
    done = answer(request())
    assert pickle.loads(pickle.dumps(done)) == done  # noqa: S301
