"""What goes over the admin socket, and where that is. Shared by `admin` and the commands.

    GET /keys
    POST /keys            NewKey
    POST /keys/revoke     Revocation
    GET /usage            ?by=&since_ms=&until_ms=

An answer is the JSON of what was asked, or with a status of 409 a Refusal.
"""

from msgspec import Struct

from verger.gateway.keys import Key

REFUSED = 409


class NewKey(Struct, frozen=True, forbid_unknown_fields=True):
    """A key to be added. The secret stays with who made it."""

    key: Key
    digest: bytes


class Revocation(Struct, frozen=True, forbid_unknown_fields=True):
    """Which key is to be refused from now on: its name or prefix."""

    name: str


class Refusal(Struct, frozen=True):
    """Why it was not done, in words for the person who asked."""

    message: str
