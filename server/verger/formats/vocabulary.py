"""Text ⇄ token ids for one model, read from the bytes of its `tokenizer.json`.

Called by `formats/harmony` and by the gateway when a model is loaded. Must not know files, nor
what a special token means: it only knows their names. Ordinary text never becomes a special id,
whatever the text says, because the inner tokenizer has never heard of the specials.
"""

from collections.abc import Iterable, Iterator, Mapping

import msgspec
from msgspec import Struct
from tokenizers import Tokenizer

from verger.errors import ModelFolderError
from verger.formats.specials import Special


class _AddedToken(Struct):
    id: int
    content: str


class _TokenizerFile(Struct):
    """The parts of tokenizer.json that we read."""

    model: dict[str, msgspec.Raw]
    added_tokens: list[_AddedToken] = []


class Vocabulary:
    """A byte-level BPE vocabulary whose special tokens are reachable by name only."""

    def __init__(self, tokenizer: Tokenizer, token_bytes: list[bytes], specials: dict[str, int]):
        self._tokenizer = tokenizer
        self._token_bytes = token_bytes
        self._specials = specials
        self.specials = frozenset(specials.values())

    @classmethod
    def from_file_bytes(cls, tokenizer_json: bytes) -> "Vocabulary":
        """Raises ModelFolderError when this is no byte-level tokenizer with Harmony's specials."""
        try:
            file = msgspec.json.decode(tokenizer_json, type=_TokenizerFile)
            entries = msgspec.json.decode(file.model["vocab"], type=dict[str, int])
        except (msgspec.DecodeError, KeyError) as error:
            raise ModelFolderError(f"tokenizer.json cannot be read: {error}") from error
        specials = {token.content: token.id for token in file.added_tokens}
        missing = [special.value for special in Special if special.value not in specials]
        if missing:
            raise ModelFolderError(
                f"tokenizer.json lacks the Harmony tokens {', '.join(missing)}: not a gpt-oss model"
            )
        ordinary = {token: id for token, id in entries.items() if token not in specials}
        return cls(_text_only(tokenizer_json, ordinary), _byte_table(ordinary, specials), specials)

    @property
    def size(self) -> int:
        """One more than the largest id; a model's embedding may have further, unused rows."""
        return len(self._token_bytes)

    def special(self, name: str) -> int:
        """The id of a special token, such as "<|start|>"."""
        return self._specials[name]

    def encode(self, text: str) -> list[int]:
        """Ordinary ids only: "<|end|>" in `text` is seven plain characters."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def token_bytes(self, id: int) -> bytes:
        """The bytes of one token; empty for specials and for ids that no token has."""
        return self._token_bytes[id] if id < len(self._token_bytes) else b""

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ordinary ids; specials vanish, broken UTF-8 becomes U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")


def _text_only(tokenizer_json: bytes, ordinary: dict[str, int]) -> Tokenizer:
    """The file's tokenizer, stripped of everything that could yield a special id."""
    file = msgspec.json.decode(tokenizer_json, type=dict[str, msgspec.Raw])
    model = msgspec.json.decode(file["model"], type=dict[str, msgspec.Raw])
    model["vocab"] = msgspec.Raw(msgspec.json.encode(ordinary))
    file["model"] = msgspec.Raw(msgspec.json.encode(model))
    for key, value in (("added_tokens", b"[]"), ("truncation", b"null"), ("padding", b"null")):
        file[key] = msgspec.Raw(value)
    try:
        return Tokenizer.from_buffer(msgspec.json.encode(file))
    except ValueError as error:
        raise ModelFolderError(f"tokenizer.json cannot be loaded: {error}") from error


def _byte_table(ordinary: Mapping[str, int], specials: Mapping[str, int]) -> list[bytes]:
    alphabet = {character: byte for byte, character in enumerate(_byte_level_alphabet())}
    table = [b""] * (1 + max((*ordinary.values(), *specials.values())))
    try:
        for token, id in ordinary.items():
            table[id] = bytes([alphabet[character] for character in token])
    except KeyError as error:
        raise ModelFolderError(
            f"tokenizer.json is not byte-level: a token holds the character {error}"
        ) from error
    return table


def _byte_level_alphabet() -> Iterator[str]:
    """GPT-2's printable stand-in for each byte, in the order of the bytes."""
    stand_ins = 256
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255:
            yield chr(byte)
        else:
            yield chr(stand_ins)
            stand_ins += 1
