"""What the Hub's client raises, told to a person: what happened, to which repository, what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from karat.errors import KaratError

BUSY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
LOGIN = "`hf auth login`, or HF_TOKEN=... in the environment; make one with the right to write on the Hub"


class HubError(KaratError):
    """The Hub refused something, for a reason that will not pass by itself."""


class HubBusyError(HubError):
    """The Hub did not answer, or asked to come again later; `wait` is what it asked for, in seconds."""

    wait: float | None = None


class HubRaceError(HubBusyError):
    """Somebody else has made a commit in the meantime; trying again starts from theirs."""


@contextmanager
def explained(repo: str) -> Iterator[None]:
    """Raise HubError or HubBusyError for whatever huggingface_hub raises inside."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    # The error type of the HTTP library that this version uses.
    transport: type[BaseException] = HfHubHTTPError.__mro__[1]
    try:
        yield
    except HfHubHTTPError as error:
        raise _for_status(error.response.status_code, repo, dict(error.response.headers)) from None
    except OfflineModeIsEnabled:
        raise HubError(
            "cannot push while HF_HUB_OFFLINE is set", where=repo, hint="unset it, and push again"
        ) from None
    except HFValidationError as error:
        raise HubError(f"not a repository name: {error}", where=repo) from None
    except (transport, ConnectionError, LocalEntryNotFoundError) as error:
        raise HubBusyError(
            f"the Hub cannot be reached ({type(error).__name__})",
            where=repo,
            hint="the run stays as it is: push it when there is a network",
        ) from None
    except ValueError as error:
        raise HubError(f"the Hub's client refused: {str(error).splitlines()[0]}", where=repo) from None


def _for_status(status: int, repo: str, headers: dict[str, str]) -> HubError:
    owner = repo.split("/")[0]
    if status in (409, 412):
        return HubRaceError(
            "the repository was changed by somebody else meanwhile", where=repo, hint="push again"
        )
    if status in BUSY_STATUS:
        why = "asks for fewer requests" if status == 429 else "is not well"
        busy = HubBusyError(f"the Hub {why} (status {status})", where=repo, hint="push again later")
        after = next((value for name, value in headers.items() if name.lower() == "retry-after"), "")
        busy.wait = float(after) if after.isdigit() else None
        return busy
    told = {
        401: ("the Hub does not accept the token (status 401)", LOGIN),
        403: (
            f"the token may not write to {owner!r} (status 403)",
            "check the owner's name, and that the token has the right to write there",
        ),
        404: ("there is no such repository, or the token may not see it (status 404)", LOGIN),
        402: ("the storage of the account is used up (status 402)", "free some, or push elsewhere"),
        413: ("a file is too large for the Hub (status 413)", "export with smaller shards"),
    }
    problem, hint = told.get(
        status, (f"the Hub refused (status {status})", "see https://status.huggingface.co")
    )
    return HubError(problem, where=repo, hint=hint)
