"""Random tool declarations and the calls made to them.

Called by `episodes` and `evaluate`. Pure, seeded. Must not know Harmony or ids.
"""

import json
import string
from random import Random
from typing import Any

from scripts.nano import texts
from scripts.nano.words import CODE_WORDS, NOUNS, VERBS
from verger.formats.conversation import Tool

SCALARS = ["string", "string", "integer", "number", "boolean"]


def tool_list(random: Random, count: int) -> tuple[Tool, ...]:
    """`count` tools with different names."""
    names: dict[str, None] = {}
    while len(names) < count:
        names[tool_name(random)] = None
    return tuple(
        Tool(name=name, description=description(random), parameters=schema(random))
        for name in names
    )


def tool_name(random: Random) -> str:
    """snake_case, camelCase, one word, or letters and digits without sense."""
    verb, noun = random.choice(VERBS), random.choice(NOUNS)
    senseless = "".join(random.choices(string.ascii_lowercase, k=random.randint(2, 6)))
    return random.choice(
        [
            f"{verb}_{noun}",
            f"{verb}_{noun}",
            f"{verb}_{random.choice(CODE_WORDS)}_{noun}",
            f"{verb}{noun.capitalize()}",
            random.choice([verb, noun]),
            f"{noun}_{random.randint(0, 99)}",
            senseless,
            f"{senseless}_{verb}{random.randint(0, 9)}",
        ]
    )


def description(random: Random) -> str:
    """Empty, or a sentence."""
    if random.random() < 0.2:
        return ""
    return "".join(texts.sentence(random, random.randint(2, 8))).replace("\n", " ")


def schema(random: Random) -> dict[str, Any] | None:
    """An object schema of up to four scalar, array or enum properties; sometimes none at all."""
    if random.random() < 0.1:
        return None
    names = random.sample(CODE_WORDS, k=random.randint(0, 4))
    return {
        "type": "object",
        "properties": {name: _property(random) for name in names},
        "required": [name for name in names if random.random() < 0.5],
    }


def arguments(random: Random, tool: Tool) -> str:
    """JSON for a call, of the declared properties or (copying must not care) of any others."""
    declared = list((tool.parameters or {}).get("properties", {}))
    if declared and random.random() < 0.6:
        chosen = [name for name in declared if random.random() < 0.8]
        value: dict[str, object] = {name: texts.json_value(random, 1) for name in chosen}
    else:
        value = texts.json_object(random, 2)
    separators = random.choice([(", ", ": "), (", ", ": "), (",", ":")])
    return json.dumps(value, ensure_ascii=random.random() < 0.1, separators=separators)


def _property(random: Random) -> dict[str, Any]:
    kind = random.choice([*SCALARS, "array", "enum"])
    if kind == "array":
        found: dict[str, Any] = {"type": "array", "items": {"type": random.choice(SCALARS)}}
    elif kind == "enum":
        found = {"type": "string", "enum": random.sample(CODE_WORDS, k=random.randint(2, 3))}
    else:
        found = {"type": kind}
    if random.random() < 0.3:
        found["description"] = description(random) or "A value."
    return found
