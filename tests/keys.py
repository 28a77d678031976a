"""Keys for tests: made in a state database, or straight in a table of one."""

import time
from pathlib import Path
from typing import Any

from verger.gateway.database import database
from verger.gateway.keys import (
    Key,
    add_key,
    digest_of,
    new_secret,
    prefix_of,
    revoke_key,
)


def make_key(file: Path, name: str, **fields: Any) -> str:
    """Add a key to the database; the secret."""
    secret = new_secret()
    fields = {"created_unix_s": int(time.time()), **fields}
    key = Key(prefix=prefix_of(secret), name=name, **fields)
    with database(file) as connection:
        add_key(connection, key, digest_of(secret))
    return secret


def revoke(file: Path, name: str) -> None:
    """As `verger keys revoke`."""
    with database(file) as connection:
        revoke_key(connection, name, int(time.time()))


def bearer(secret: str) -> dict[str, str]:
    """The header of OpenAI's clients."""
    return {"authorization": f"Bearer {secret}"}
