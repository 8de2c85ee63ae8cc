"""What can go wrong on the way to the Hub, in one line."""

from huggingface_hub.errors import HfHubHTTPError, HTTPError


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
    """Say in one line why a push failed and what to do.

    Args:
        error: One of `PUSH_ERRORS`.
        repo_id: Repository that was pushed to.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
    if status in _REASONS:
        reason = f"{_REASONS[status]} (HTTP {status})"
    elif status is not None:
        reason = f"the Hub answered HTTP {status}"
    else:
        last = error
        while last.__cause__ is not None:
            last = last.__cause__
        reason = " ".join(str(last).split()) or type(last).__name__
    return f"The push to {repo_id} failed: {reason}. Nothing here was changed; push again to complete it."
