"""Names and repositories on the Hub, and what is told when an upload fails.

Authentication and endpoint are those of huggingface_hub: `hf auth login`, HF_TOKEN, HF_ENDPOINT.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from limner.errors import LimnerError
from limner.redaction import redact_urls
from limner.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi

log = logging.getLogger(__name__)


def full_name(repo: str, dry_run: bool, flag: str = "--repo") -> str:
    """`owner/name` of a repository; the owner defaults to the logged-in user.

    Raises:
        LimnerError: the id is invalid, or nobody is logged in.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise LimnerError(f"{flag} {repo}: {str(error).splitlines()[0]}") from None
    if "/" in repo:
        return repo
    if dry_run:
        return f"your-name/{repo}"
    with _told(repo):
        return f"{HfApi().whoami()['name']}/{repo}"


def upload(folder: Path, repo: str, private: bool, page: tuple[Path, str] | None = None) -> str:
    """Upload a model in one commit, and its Space in another.

    Both repositories are made first, so that what is not allowed is told before anything is sent.
    Files that the Hub already has are not sent again.

    Args:
        private: make a new repository private.
        page: folder and id of the Space. It is private where the model is.

    Returns:
        The URL of the commit of the model.

    Raises:
        LimnerError: an upload fails; the message says what is there.
    """
    from huggingface_hub import HfApi

    api, message = HfApi(), f"Published with Limner {__version__}"
    with _told(repo):
        api.create_repo(repo, private=private or None, exist_ok=True)
    if page is not None:
        with _told(f"the Space {page[1]}", "nothing was uploaded"):
            _create_space(api, repo, page[1], private)
    with _told(repo):
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
        address = redact_urls(str(commit.commit_url))
    if page is not None:
        there = (
            f"the model is at {address}; run the same command again for the Space, the files of "
            "the model are not sent again"
        )
        with _told(f"the Space {page[1]}", there):
            api.upload_folder(
                repo_id=page[1], folder_path=page[0], commit_message=message, repo_type="space"
            )
        log.info("the page is at %s", redact_urls(f"{api.endpoint}/spaces/{page[1]}"))
    return address


def _create_space(api: HfApi, repo: str, space: str, private: bool) -> None:
    """Make the Space, unless it is there.

    Raises:
        LimnerError: it is there and shows what shall not be seen, or is something else.
    """
    private = private or bool(api.model_info(repo).private)
    api.create_repo(
        space, repo_type="space", space_sdk="static", private=private or None, exist_ok=True
    )
    found = api.space_info(space)
    if private and not found.private:
        raise LimnerError(
            f"it exists and is public, but the model {repo} is private; make the Space private in "
            "its settings, or choose another with --space"
        )
    if found.sdk not in (None, "static"):
        raise LimnerError(
            f"it exists and is a program ({found.sdk}), not a page; choose another with --space"
        )


@contextlib.contextmanager
def _told(what: str, there: str | None = None) -> Iterator[None]:
    """Convert errors of the Hub to LimnerError, without the token.

    Args:
        what: is published.
        there: what is on the Hub nevertheless, and what to do.
    """
    from huggingface_hub import constants, errors, get_token

    try:
        yield
    except Exception as error:  # of the Hub, of HTTP, of the network, of the disk
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if status in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError):
            reason = (
                "you are not logged in, or your token has no write access; run `hf auth login` or "
                "set HF_TOKEN with a token that has"
            )
        if token := get_token():
            reason = reason.replace(token, "***")
        raise LimnerError(
            f"{what} was not published at {constants.ENDPOINT}: {reason}"
            + (f"\n{there}" if there else "")
        ) from None
