"""Whether a second machine finds this machine's service on the network.

A part of `scripts/first_hour.py`. Asks the service which one it is, then the second machine over
ssh which ones it finds: by `verger discover`, or where Verger is missing by its system's `dns-sd`.
Must not know multicast DNS. `dns-sd -Z` prints all records of a type as a zone file, and goes on
until it is ended.
"""

import shutil
import ssl
from collections.abc import Callable, Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from scripts.hour.parts import Fail, Skip, answer_of, at, listed
from scripts.hour.run import NOT_FOUND, Run

SERVICE = "http://127.0.0.1:8374"
PORT = 8374
ANSWER_LIMIT_S = 10.0
REMOTE_LIMIT_S = 60.0
BROWSE_S = 10
OPTIONS = ("-o", "BatchMode=yes", "-o", "ConnectTimeout=10")
DISCOVER = "verger discover --json"
DNS_SD = (
    f"/bin/sh -c 'command -v dns-sd >/dev/null || exit {NOT_FOUND}; "
    f"dns-sd -Z _verger._tcp local & browsing=$!; sleep {BROWSE_S}; kill $browsing'"
)

IdOf = Callable[[str], str | None]


def found_from(machine: str | None, service: str, run: Run, id_of: IdOf) -> object:
    """`machine` is USER@HOST, or None. Raises Skip or Fail."""
    if machine is None:
        raise Skip("name a second machine: scripts/first_hour --second-machine USER@HOST")
    if machine.startswith("-"):
        raise Skip(f"{machine} is no USER@HOST")
    ssh = shutil.which("ssh")
    if ssh is None:
        raise Skip("there is no ssh here: run `verger discover` on the second machine")
    server_id = id_of(service)
    if server_id is None:
        raise Skip(f"no Verger answers at {service}: verger service start, or --service URL")
    answer = _seen((ssh, *OPTIONS, machine), run, server_id)
    if not answer["is_found"]:
        raise Fail(f"{machine} does not find {server_id}", answer)
    return answer


def served_id(url: str) -> str | None:
    """Which Verger answers there, by a route that needs no key; its certificate is not judged."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or parts.hostname is None:
        return None
    connection: HTTPConnection
    if parts.scheme == "https":
        context = ssl._create_unverified_context()
        connection = HTTPSConnection(
            parts.hostname, parts.port or PORT, timeout=ANSWER_LIMIT_S, context=context
        )
    else:
        connection = HTTPConnection(parts.hostname, parts.port or PORT, timeout=ANSWER_LIMIT_S)
    try:
        connection.request("GET", "/livez")
        return connection.getresponse().getheader("x-verger-id")
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()


def _seen(ssh: Sequence[str], run: Run, server_id: str) -> dict[str, object]:
    done = run((*ssh, DISCOVER), REMOTE_LIMIT_S)
    if done.status == NOT_FOUND:
        browsed = run((*ssh, DNS_SD), REMOTE_LIMIT_S)
        if browsed.status == NOT_FOUND:
            raise Skip("the second machine has neither verger nor dns-sd: install one of them")
        is_found = f'"id={server_id}"' in browsed.out
        return {"by": "dns-sd", "id": server_id, "is_found": is_found, "answer": browsed.out}
    # 3: no server was found, which is an answer.
    answer = answer_of(done, fine=(0, 3))
    ids = [at(row, "id") for row in listed(answer, "instances")]
    return {"by": "verger", "id": server_id, "is_found": server_id in ids, "answer": answer}
