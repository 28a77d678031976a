"""Logging as key=value lines on standard error.

Called once by the CLI and once by the engine process; must not know what is logged.
Never log prompts, completions or keys.
"""

import logging
import sys

_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def configure(level: int = logging.INFO) -> None:
    """Send the `verger` loggers to standard error; other libraries stay at WARNING."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("verger").setLevel(level)


def key_values(**fields: object) -> str:
    """`event=start port=8374 reason="two words"`; fields that are None are left out."""
    return " ".join(f"{key}={_quoted(value)}" for key, value in fields.items() if value is not None)


def _quoted(value: object) -> str:
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    if text.isprintable() and text and not any(mark in text for mark in ' "='):
        return text
    # A path is the client's to choose: no byte of it may act on a terminal or begin a line.
    escaped = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text.replace("\\", "\\\\").replace('"', '\\"')
    )
    return f'"{escaped}"'
