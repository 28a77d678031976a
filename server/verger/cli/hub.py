"""A hub of models, huggingface.co or what HF_ENDPOINT names: its files, and their bytes.

Used by `verger pull`. The only module that knows huggingface_hub, which brings the endpoint, the
token, offline mode, the HTTP client and what its errors mean; it comes with the extra `engine`. The
requests are made here: its own download (2.4.0) keeps nothing of a file that a process did not
finish, and its own headers first ask the hub which coding agents there are, to report them.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import PurePosixPath
from urllib.parse import quote

import httpx2
import msgspec
from huggingface_hub import constants, get_session, get_token, hf_raise_for_status
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from msgspec import Struct

from verger import __version__
from verger.cli.download import Body, Interrupted, RemoteFile
from verger.errors import DownloadError

METADATA_LIMIT_S = 30.0
SILENCE_LIMIT_S = 30.0
"""A connection that brings nothing for so long is given up, and made again."""
MAX_FILES = 200


class _Lfs(Struct, frozen=True):
    sha256: str


class _Sibling(Struct, frozen=True):
    rfilename: str
    size: int | None = None
    lfs: _Lfs | None = None


class _Listing(Struct, frozen=True):
    sha: str
    siblings: list[_Sibling]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A revision as the hub has it."""

    commit: str
    files: tuple[RemoteFile, ...]


class Hub:
    """One repository, as far as it is asked."""

    def __init__(self, repository: str) -> None:
        self.repository = repository
        self.endpoint = constants.ENDPOINT

    def snapshot(self, revision: str) -> Snapshot:
        """Its files, with sizes and checksums; raises DownloadError."""
        listing = self._listing(revision)
        if not 0 < len(listing.siblings) <= MAX_FILES:
            raise DownloadError(
                f"{self.repository} has {len(listing.siblings)} files at {self.endpoint}: from 1 "
                f"to {MAX_FILES} are taken"
            )
        files = map(_remote_file, listing.siblings)
        return Snapshot(listing.sha, tuple(file for file in files if file.name[0] != "."))

    def _listing(self, revision: str) -> _Listing:
        url = f"{self.endpoint}/api/models/{self.repository}/revision/{quote(revision, safe='')}"
        try:
            response = get_session().get(
                url, params={"blobs": True}, headers=_headers(), timeout=METADATA_LIMIT_S
            )
            hf_raise_for_status(response)
            return msgspec.json.decode(response.content, type=_Listing)
        except (OfflineModeIsEnabled, httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise DownloadError(self._explained(error, revision)) from error
        except msgspec.DecodeError as error:
            raise DownloadError(f"{self.endpoint} does not answer as a hub: {error}") from error

    @contextmanager
    def body(self, commit: str, file: RemoteFile, start: int) -> Iterator[Body]:
        """A file's bytes from `start` on, or from 0 where the hub cannot skip; raises Interrupted
        if another attempt may do better, and DownloadError."""
        url = f"{self.endpoint}/{self.repository}/resolve/{commit}/{quote(file.name)}"
        headers = _headers() | {"accept-encoding": "identity"}
        if start:
            headers["range"] = f"bytes={start}-"
        timeout = httpx2.Timeout(SILENCE_LIMIT_S)
        try:
            with get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
                _check(response, file)
                is_rest = response.status_code == HTTPStatus.PARTIAL_CONTENT
                yield Body(start if is_rest else 0, response.iter_bytes())
        except OfflineModeIsEnabled as error:
            raise DownloadError(self._explained(error, commit)) from error
        except httpx2.HTTPError as error:
            raise Interrupted(f"{type(error).__name__} {error}".strip()) from error

    def _explained(self, error: Exception, revision: str) -> str:
        match error:
            case OfflineModeIsEnabled():
                return (
                    f"HF_HUB_OFFLINE is set, so {self.repository} is not asked for: unset it, or "
                    "copy the model's folder from another machine"
                )
            case GatedRepoError():
                return f"{self.repository} wants its terms accepted first, at {self.endpoint}"
            case RevisionNotFoundError():
                return f"{self.repository} has no revision {revision!r} at {self.endpoint}"
            case RepositoryNotFoundError():
                return f"there is no {self.repository} at {self.endpoint}, or it is private"
            case HfHubHTTPError():
                return f"{self.endpoint} answers {error.response.status_code}: try again later"
        return (
            f"cannot reach {self.endpoint} ({type(error).__name__}): check the network, the proxy "
            "and HF_ENDPOINT, then try again"
        )


def _headers() -> dict[str, str]:
    """The token, where this user has one, is not sent along to where the hub redirects."""
    token = get_token()
    authorization = {"authorization": f"Bearer {token}"} if token else {}
    return {"user-agent": f"verger/{__version__}", **authorization}


def _remote_file(sibling: _Sibling) -> RemoteFile:
    """Only what can be checked is taken, and only to where it belongs."""
    path = PurePosixPath(sibling.rfilename)
    is_inside = not path.is_absolute() and ".." not in path.parts and "\\" not in str(path)
    if not path.name or not is_inside or sibling.size is None or sibling.size < 0:
        raise DownloadError(f"the hub lists a file that cannot be taken: {sibling.rfilename!r}")
    sha256 = sibling.lfs.sha256 if sibling.lfs else None
    if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise DownloadError(f"the hub names no SHA-256 for {sibling.rfilename}: {sha256!r}")
    return RemoteFile(path.as_posix(), sibling.size, sha256)


def _check(response: httpx2.Response, file: RemoteFile) -> None:
    status = response.status_code
    if status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        return
    is_passing = status in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
    if is_passing or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise Interrupted(f"the hub answers {status}")
    raise DownloadError(f"the hub refuses {file.name} with {status}")
