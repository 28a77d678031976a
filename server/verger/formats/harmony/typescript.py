"""A tool's JSON schema → the TypeScript type that gpt-oss was trained to read.

Called by `tools.py`. Must not know messages, tokens or a vocabulary. The layout, its oddities
included (line breaks inside comments, unescaped quotes, a union's descriptions left out), is that
of openai-harmony 0.0.8; tests/contract/test_harmony_oracle.py compares them: do not tidy it.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

Schema = dict[str, Any]

_SCALARS = {"number": "number", "integer": "number", "boolean": "boolean"}
_OBJECT_INDENT = " " * 4
_VARIANT_INDENT = " " * 3


def type_of(value: object, indent: str = "") -> str:
    """The type of a schema (anything else is `any`) whose own lines are indented by `indent`."""
    schema = _schema(value)
    if _is_union(schema):
        return _union(schema, indent)
    match schema.get("type"):
        case list(names):
            return _names(names)
        case "object":
            return _object(schema, indent)
        case "array":
            return f"{type_of(schema['items'], indent)}[]" if "items" in schema else "Array<any>"
        case "string":
            choices = [choice for choice in _list(schema, "enum") if isinstance(choice, str)]
            return " | ".join(f'"{choice}"' for choice in choices) or "string"
        case str(name):
            return _SCALARS.get(name, "any")
        case _:
            return "any"


def _names(names: list[object]) -> str:
    known = [name for name in names if isinstance(name, str)]
    return " | ".join("number" if name == "integer" else name for name in known) or "any"


def _union(schema: Schema, indent: str) -> str:
    lines = []
    for variant in map(_schema, schema["oneOf"]):
        notes = [_text(variant, "description"), _default(variant, is_in_property=False)]
        lines.append(_variant(variant, indent, notes))
    return "".join(lines)


def _variant(schema: Schema, indent: str, notes: list[str | None]) -> str:
    written = _nullable_type(schema, indent + _VARIANT_INDENT)
    kept = [note for note in notes if note is not None]
    comment = f" // {' '.join(kept)}" if kept else ""
    return f"\n{indent} | {written}{comment}"


def _object(schema: Schema, indent: str) -> str:
    required = _list(schema, "required")
    head = _comment(_text(schema, "description"), indent)
    lines = [
        _property(f"{indent}{name}{'' if name in required else '?'}:", _schema(value), indent)
        for name, value in _schema(schema.get("properties")).items()
    ]
    return "".join((head, "{\n", *lines, indent, "}"))


def _property(key: str, schema: Schema, indent: str) -> str:
    if _is_union(schema):
        return _union_property(key, schema, indent)
    head = _title(schema, indent) + _comment(_text(schema, "description"), indent)
    default = _default(schema, is_in_property=True)
    comment = "" if default is None else f" // {default}"
    written = _nullable_type(schema, indent + _OBJECT_INDENT)
    return f"{head}{_examples(schema, indent)}{key} {written},{comment}\n"


def _union_property(key: str, schema: Schema, indent: str) -> str:
    """A property's union has its default above; descriptions that could be repeated are not."""
    variants = [_schema(variant) for variant in schema["oneOf"]]
    own = _text(schema, "description")
    is_repeated = bool(variants) and own == _text(variants[0], "description")
    head = _title(schema, indent) + _examples(schema, indent)
    head += "" if is_repeated else _comment(own, indent)
    head += _comment(_default(schema, is_in_property=True), indent)
    lines = [
        _variant(variant, indent, [description, _default(variant, is_in_property=True)])
        for variant, description in zip(variants, _union_descriptions(own, variants), strict=True)
    ]
    return f"{head}{key}{''.join(lines)}\n{indent},\n"


def _union_descriptions(own: str | None, variants: list[Schema]) -> Iterator[str | None]:
    """What each variant says of itself; beside a property's own description, the first is mute."""
    for number, variant in enumerate(variants):
        description = _text(variant, "description")
        is_shown = own is None or (number > 0 and description != own)
        yield description if is_shown else None


def _nullable_type(schema: Schema, indent: str) -> str:
    written = type_of(schema, indent)
    is_marked = schema.get("nullable") is True and "null" not in written
    return f"{written} | null" if is_marked else written


def _title(schema: Schema, indent: str) -> str:
    title = _text(schema, "title")
    return "" if title is None else f"{_comment(title, indent)}{indent}//\n"


def _examples(schema: Schema, indent: str) -> str:
    examples = _list(schema, "examples")
    lines = [f"{indent}// Examples:\n"] if examples else []
    lines += [f'{indent}// - "{text}"\n' for text in examples if isinstance(text, str)]
    return "".join(lines)


def _comment(text: str | None, indent: str) -> str:
    return "" if text is None else f"{indent}// {text}\n"


def _default(schema: Schema, is_in_property: bool) -> str | None:
    """A string is quoted but not escaped; beside an enum it is bare in a property, else JSON."""
    if "default" not in schema:
        return None
    default = schema["default"]
    has_enum = bool(_list(schema, "enum"))
    if not isinstance(default, str) or (has_enum and not is_in_property):
        return f"default: {msgspec.json.encode(default).decode()}"
    return f"default: {default}" if has_enum else f'default: "{default}"'


def _is_union(schema: Schema) -> bool:
    return isinstance(schema.get("oneOf"), list)


def _schema(value: object) -> Schema:
    return value if isinstance(value, dict) else {}


def _list(schema: Schema, key: str) -> list[Any]:
    value = schema.get(key)
    return value if isinstance(value, list) else []


def _text(schema: Schema, key: str) -> str | None:
    value = schema.get(key)
    return value if isinstance(value, str) else None
