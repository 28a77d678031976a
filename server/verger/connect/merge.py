"""Puts our settings into somebody's JSON file without losing what is there.

Called by `verger connect --write`. Pure: text in, text out. What cannot be merged for sure
(comments, a key that stands twice, a value where we need a table) raises Unmergeable.
"""

import json
import re
from typing import Any

_INDENT = re.compile(r'^([ \t]+)"', re.M)


class Unmergeable(Exception):
    """Says what is in the way."""


def merge_json(existing: str, ours: str) -> str:
    """The existing file with our keys in it; the same text where they are there already."""
    theirs = _parse(existing)
    merged = _merged(theirs, json.loads(ours), "")
    if merged == theirs:
        return existing
    found = _INDENT.search(existing)
    return json.dumps(merged, indent=found[1] if found else 2, ensure_ascii=False) + "\n"


def _parse(text: str) -> dict[str, Any]:
    if not text.strip():
        return {}
    try:
        document = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise Unmergeable(f"it is not plain JSON ({error})") from None
    if not isinstance(document, dict):
        raise Unmergeable("it holds no object")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise Unmergeable("a key stands in it twice")
    return document


def _merged(theirs: dict[str, Any], ours: dict[str, Any], place: str) -> dict[str, Any]:
    merged = dict(theirs)
    for key, value in ours.items():
        if isinstance(value, dict):
            table = merged.get(key, {})
            if not isinstance(table, dict):
                raise Unmergeable(f"{place}{key} is no object")
            merged[key] = _merged(table, value, f"{place}{key}.")
        else:
            merged[key] = value
    return merged
