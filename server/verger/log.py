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
    if text and not any(character.isspace() or character in '"=' for character in text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
