"""The o200k vocabulary in the tests' cache: checked, stored, and turned into a tokenizer.json.

Called by `scripts/fetch_oracle`: with the path of a .tiktoken file it stores that, without one it
says whether all is there. Must not know where the file comes from.
"""

import base64
import hashlib
import os
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from tests.oracle import TIKTOKEN_FILE, TOKENIZER_FILE, cache_folder

TIKTOKEN_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
TOKENIZER_SHA256 = "0614fe83cadab421296e664e1f48f4261fa8fef6e03e63bb75c20f38e37d07d3"
"""Of the tokenizer.json that gpt-oss is published with: ours is the same, byte for byte."""

# How o200k splits text into words before it merges their bytes.
WORDS = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
FIRST_SPECIAL, LAST_SPECIAL = 199_998, 200_018
SPECIALS = {
    199_998: "<|startoftext|>",
    199_999: "<|endoftext|>",
    200_002: "<|return|>",
    200_003: "<|constrain|>",
    200_005: "<|channel|>",
    200_006: "<|start|>",
    200_007: "<|end|>",
    200_008: "<|message|>",
    200_012: "<|call|>",
    200_018: "<|endofprompt|>",
}


def main() -> int:
    """Exit status 1: something is missing and was not given."""
    folder = cache_folder()
    files = [folder / TIKTOKEN_FILE, folder / TOKENIZER_FILE]
    if sys.argv[1:]:
        tiktoken = Path(sys.argv[1]).read_bytes()
        folder.mkdir(parents=True, exist_ok=True)
        store(files[0], tiktoken, TIKTOKEN_SHA256)
        store(files[1], tokenizer_json(tiktoken), TOKENIZER_SHA256)
    if not all(file.is_file() for file in files):
        return 1
    print(folder)
    return 0


def store(file: Path, content: bytes, sha256: str) -> None:
    """Only what has the right digest gets the right name."""
    if hashlib.sha256(content).hexdigest() != sha256:
        sys.exit(f"verger: {file.name} is not what the tests were written for: wrong sha256")
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.replace(file)


def tokenizer_json(tiktoken: bytes) -> bytes:
    """A byte-level BPE tokenizer of a .tiktoken file (`base64(token) rank` a line)."""
    ranks = {
        base64.b64decode(line.split()[0]): int(line.split()[1]) for line in tiktoken.splitlines()
    }
    spelled = {token: spell(token) for token in ranks}
    merges = [
        (spelled[left], spelled[right])
        for token in sorted(ranks, key=ranks.__getitem__)
        for left, right in splits(token, ranks)
    ]
    vocabulary = {spelled[token]: rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, fuse_unk=False, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens(
        [
            AddedToken(SPECIALS.get(id, f"<|reserved_{id}|>"), normalized=False, special=True)
            for id in range(FIRST_SPECIAL, LAST_SPECIAL + 1)
        ]
    )
    return tokenizer.to_str(pretty=True).encode()


def splits(token: bytes, ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pairs of tokens that a token can be merged from, lowest ranks first."""
    pairs = ((token[:at], token[at:]) for at in range(1, len(token)))
    known = [(left, right) for left, right in pairs if left in ranks and right in ranks]
    return sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def spell(token: bytes) -> str:
    """One character a byte, printable: the inverse of what `Vocabulary` does."""
    return "".join(map(ALPHABET.__getitem__, token))


def byte_level_alphabet() -> list[str]:
    """GPT-2's stand-ins: printable bytes are themselves, the others follow from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


ALPHABET = byte_level_alphabet()

if __name__ == "__main__":
    sys.exit(main())
