"""Pushes data sets, and says in one line what can go wrong on the way to the Hub."""

import argparse
import os
import sys
from pathlib import Path

import yaml
from huggingface_hub import DatasetCard, HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from ..data.command_line import Parser
from ..data.metadata import METADATA_FILE


# HTTPError: what the Hub answered, and every trouble with the connection. RuntimeError: what huggingface_hub raises
# in place of either where it uploads large files. OSError: files that cannot be read, no network at all.
PUSH_ERRORS = (HTTPError, OSError, RuntimeError)

_REASONS = {
    401: "the access token is missing or not valid; log in by `hf auth login`",
    403: "the access token may not write there; make one with write permission",
    404: "there is no such repository, or the access token may not see it",
    409: "somebody else changed the repository at the same time",
    412: "somebody else changed the repository at the same time",
    429: "too many requests",
}


def explain_push_error(error: BaseException, repo_id: str) -> str:
    """Say in one line why a push failed with one of `PUSH_ERRORS`, and what to do."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    status = next((cause.response.status_code for cause in causes if isinstance(cause, HfHubHTTPError)), None)
    if status in _REASONS:
        reason = f"{_REASONS[status]} (HTTP {status})"
    elif status is not None:
        reason = f"the Hub answered HTTP {status}"
    else:
        reason = " ".join(str(causes[-1]).split()) or type(causes[-1]).__name__
    return f"The push to {repo_id} failed: {reason}. Nothing here was changed; push again to complete it."


def push_dataset(folder: str | os.PathLike, repo_id: str, private: bool = True) -> str:
    """Upload what a converter wrote, Parquet files, metadata, card and record of the conversion; returns the address.

    A push that broke off is completed by another one: what is there already is not sent again. Parquet files of an
    earlier version that the folder no longer has are deleted. A dataset that is created is private if `private` is,
    and one that is public already is refused then.

    Raises:
        ValueError: If the folder is no dataset of ours, its card is not valid, or the dataset is there and public but
            `private` is True. Nothing is uploaded then.
        OSError: If the push failed; the message is one line that says why and what to do.
    """
    from ..model.saving_sgma import refuse_public_repository  # imports the pipeline, and torch

    folder = Path(folder)
    missing = [name for name in (METADATA_FILE, "README.md") if not (folder / name).is_file()]
    if missing or not any(folder.rglob("*.parquet")):
        raise ValueError(
            f"{str(folder)!r} has no {' and no '.join(missing) or 'Parquet files'}: it is no dataset of a converter. "
            "Write it by one of dataset_scripts/ first."
        )
    api = HfApi()
    try:
        _check_card(folder / "README.md")  # before there is a repository
        url = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        refuse_public_repository(api, repo_id, private=private, repo_type="dataset")
        api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=["**/*.parquet", "*.parquet", METADATA_FILE, "conversion.json", "README.md"],
            ignore_patterns=[".*", "**/.*"],
            delete_patterns=["*.parquet", "**/*.parquet"],
            commit_message="Upload dataset",
        )
    except PUSH_ERRORS as error:
        raise OSError(explain_push_error(error, repo_id)) from error
    return str(url)


def _check_card(path: Path) -> None:
    """Have the Hub check the head of a card."""
    try:
        DatasetCard.load(path).validate(repo_type="dataset")
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"The head of {str(path)!r} is not valid: {reason}. Correct it; nothing was pushed."
        ) from error


def add_push_arguments(parser: Parser) -> None:
    """Add `--push ORG/NAME` and `--public` to a converter's command line, for `push_as_asked`."""
    parser.add_argument("--push", metavar="ORG/NAME", help="upload --output to the Hub, as a private dataset")
    parser.add_switch("--public", help="with --push: make a public dataset")


def push_as_asked(arguments: argparse.Namespace) -> None:
    """Push `arguments.output` as `push_dataset` does if `--push` was given, and print where it is."""
    if arguments.push:
        url = push_dataset(arguments.output, arguments.push, private=not arguments.public)
        sys.stdout.write(f"{url}\n")
