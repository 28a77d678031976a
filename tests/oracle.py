"""The exact vocabulary of gpt-oss, as `scripts/fetch_oracle` has stored it outside the tree.

A test that needs it is marked `oracle` and skips where the files are missing, unless
VERGER_REQUIRE_ORACLE=1 says that they must be there, as `scripts/test` does.
"""

import functools
import os
import sys
from pathlib import Path

import pytest

from verger.formats.vocabulary import Vocabulary

TIKTOKEN_FILE = "o200k_base.tiktoken"
"""The name under which openai-harmony looks for it in $TIKTOKEN_ENCODINGS_BASE."""
TOKENIZER_FILE = "tokenizer.json"
"""The official one of gpt-oss, 27.9 MB: 200,019 tokens."""


def cache_folder() -> Path:
    """$VERGER_TEST_CACHE, else a folder of our own in the user's cache."""
    if given := os.environ.get("VERGER_TEST_CACHE"):
        return Path(given)
    platform_cache = "Library/Caches" if sys.platform == "darwin" else ".cache"
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / platform_cache
    return Path(caches) / "verger-tests"


def oracle_folder() -> Path:
    """The cache with both files in it; skips or fails the test where they are missing."""
    folder = cache_folder()
    if all((folder / name).is_file() for name in (TIKTOKEN_FILE, TOKENIZER_FILE)):
        return folder
    reason = f"{folder} lacks the o200k vocabulary: run scripts/fetch_oracle"
    if os.environ.get("VERGER_REQUIRE_ORACLE") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@functools.cache
def full_vocabulary() -> Vocabulary:
    """gpt-oss's own vocabulary, loaded once for all tests (about 2 s)."""
    return Vocabulary.from_file_bytes((oracle_folder() / TOKENIZER_FILE).read_bytes())
