"""The special tokens of Harmony, as a type of their own so that text cannot be taken for one.

Used by the vocabulary, the renderer and the parser. Must not know ids: each vocabulary has its own.
"""

from enum import Enum


class Special(Enum):
    """A token that is markup; `value` is its name in every gpt-oss vocabulary."""

    START = "<|start|>"
    END = "<|end|>"
    MESSAGE = "<|message|>"
    CHANNEL = "<|channel|>"
    CONSTRAIN = "<|constrain|>"
    RETURN = "<|return|>"
    CALL = "<|call|>"
    END_OF_TEXT = "<|endoftext|>"


STOPS = (Special.RETURN, Special.CALL, Special.END_OF_TEXT)
"""The tokens that end a generation; <|end|> only ends one of its messages."""
