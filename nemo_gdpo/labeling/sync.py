"""A Label Studio server, through its SDK (the extra `label`), which is imported when it is used.

The token is read from the environment and stays in memory.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from nemo_gdpo.config.labeling import KEY_VARIABLE
from nemo_gdpo.errors import UserError
from nemo_gdpo.io.http import url_problem
from nemo_gdpo.labeling.errors import LedgerError
from nemo_gdpo.labeling.given_back import PAIR
from nemo_gdpo.labeling.studio import CONFIG

BATCH = 100
"""Tasks that are sent, or asked for, at once."""


class Studio:
    """One server.

    Args:
        url: of the server.

    Raises:
        UserError: the token or the SDK is missing, or the URL is none.
    """

    def __init__(self, url: str) -> None:
        problem = url_problem(url)
        if problem is not None:
            remedy = problem[1].replace("https://host/v1", "http://host:8080")
            remedy = remedy.replace("by key_variable", f"as {KEY_VARIABLE}")
            raise UserError(f"label.url: {problem[0]}; {remedy}")
        token = os.environ.get(KEY_VARIABLE, "").strip()
        if not token:
            raise UserError(
                f"label.url: the environment variable {KEY_VARIABLE} is not set; export the access "
                "token of your account page there"
            )
        try:
            sdk = importlib.import_module("label_studio_sdk")
            self._refusal = importlib.import_module("label_studio_sdk.core.api_error").ApiError
        except ModuleNotFoundError as error:
            raise UserError(
                f"label.url: needs the package label-studio-sdk ({error.name} is not installed); "
                "install nemo_gdpo with the extra label, or leave label.url out and exchange files"
            ) from None
        self.url, self._token = url.rstrip("/"), token
        self._client: Any = sdk.LabelStudio(base_url=self.url, api_key=token)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of the SDK as one line without the token.

        Raises:
            UserError: the server refuses the token or the project.
            LedgerError: it is gone or failing.
        """
        try:
            yield
        except self._refusal as error:
            raise self._of_status(error.status_code, error.body) from None
        except httpx.TransportError as error:
            raise self._gone(str(error) or type(error).__name__) from None

    def _of_status(self, status: int | None, body: Any) -> UserError | LedgerError:
        if status in (401, 403):
            return UserError(
                f"label.url: {self.url} refuses the token (status {status}); export a valid one as "
                f"{KEY_VARIABLE}"
            )
        said = " ".join(str(body).split())[:300].replace(self._token, "[token]")
        if status == 404:
            return UserError(f"label.project: {self.url} has none of that number; correct it")
        if status is not None and 400 <= status < 500:
            return UserError(
                f"label.url: {self.url} answers with status {status} ({said}); check url and "
                "project"
            )
        return self._gone(f"status {status}")

    def _gone(self, reason: str) -> LedgerError:
        told = reason.replace(self._token, "[token]")
        return LedgerError(
            f"Label Studio at {self.url} is gone or failing ({told}); what was recorded is kept: "
            "run the same command again once it answers"
        )

    def make_project(self, title: str) -> int:
        """A new project with our labelling configuration; its number."""
        with self._explained():
            return int(self._client.projects.create(title=title, label_config=CONFIG).id)

    def tasks(self, project: int) -> Iterator[dict[str, Any]]:
        """The project's tasks with their annotations, as they come.

        Raises:
            UserError, LedgerError: see `_explained`.
        """
        with self._explained():
            self._client.projects.get(id=project)
            found = self._client.tasks.list(project=project, fields="all", page_size=BATCH)
            for task in found:
                yield _plain(task)

    def push(self, project: int, tasks: Sequence[dict[str, Any]]) -> int:
        """Send the tasks that the project does not have; returns how many those are.

        Raises:
            UserError, LedgerError: see `_explained`; what was sent stays there.
        """
        there = {(task.get("data") or {}).get(PAIR) for task in self.tasks(project)}
        missing = [task for task in tasks if task["data"][PAIR] not in there]
        for start in range(0, len(missing), BATCH):
            with self._explained():
                self._client.projects.import_tasks(
                    id=project, request=missing[start : start + BATCH]
                )
        return len(missing)


def _plain(task: Any) -> dict[str, Any]:
    """A task of the SDK as JSON."""
    found: dict[str, Any] = task.model_dump(mode="json")
    return found
