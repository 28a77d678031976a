"""JSON schemas as TypeScript: the cases that openai-harmony's own layout is known by."""

from typing import Any

import pytest

from verger.formats.conversation import Tool
from verger.formats.harmony.tools import tools_section
from verger.formats.harmony.typescript import type_of


@pytest.mark.parametrize(
    ("parameters", "declaration"),
    [
        (None, "type f = () => any;"),
        ({}, "type f = (_: any) => any;"),
        ({"type": "object"}, "type f = (_: {\n}) => any;"),
        ({"type": "object", "properties": {}}, "type f = (_: {\n}) => any;"),
    ],
)
def test_a_tool_without_properties(parameters: dict[str, Any] | None, declaration: str) -> None:
    assert f"{{\n\n{declaration}\n\n}}" in tools_section([Tool("f", "", parameters)])


def test_every_line_of_a_description_is_a_comment() -> None:
    assert "{\n\n// a\n// \n// b\ntype f" in tools_section([Tool("f", "a\r\n\nb\n")])


def test_tools_are_separated_by_a_blank_line() -> None:
    section = tools_section([Tool("f"), Tool("g")])
    assert "type f = () => any;\n\ntype g = () => any;" in section


@pytest.mark.parametrize(
    ("schema", "line"),
    [
        ({"type": "string"}, "a?: string,"),
        ({"type": "integer"}, "a?: number,"),
        ({"type": "boolean", "default": True}, "a?: boolean, // default: true"),
        ({"type": "string", "default": 'q"'}, 'a?: string, // default: "q""'),
        ({"type": "string", "enum": ["x", "y"], "default": "x"}, 'a?: "x" | "y", // default: x'),
        ({"type": "number", "default": 1e30}, "a?: number, // default: 1e30"),
        ({"type": "string", "nullable": True}, "a?: string | null,"),
        ({"type": ["integer", "null"], "nullable": True}, "a?: number | null,"),
        ({"type": "array"}, "a?: Array<any>,"),
        ({"type": "array", "items": {"type": "string", "enum": ["x"]}}, 'a?: "x"[],'),
        (
            {"type": "array", "items": {"oneOf": [{"type": "string", "description": "D"}, {}]}},
            "a?: \n     | string // D\n     | any[],",
        ),
        ({"anyOf": [{"type": "string"}]}, "a?: any,"),
        ({"$ref": "#/x"}, "a?: any,"),
        ({"const": 1}, "a?: any,"),
        (True, "a?: any,"),
        ({"type": "string", "title": "T", "description": "D"}, "// T\n//\n// D\na?: string,"),
        ({"type": "string", "examples": ["x", 1]}, '// Examples:\n// - "x"\na?: string,'),
        ({"oneOf": []}, "a?:\n,"),
        (
            {
                "description": "D",
                "oneOf": [{"type": "string", "default": "x"}, {"type": "integer"}],
            },
            '// D\na?:\n | string // default: "x"\n | number\n,',
        ),
        (
            {"type": "object", "description": "D", "properties": {"b": {"type": "null"}}},
            "// D\na?:     // D\n{\n    b?: any,\n    },",
        ),
    ],
)
def test_a_property(schema: object, line: str) -> None:
    assert type_of({"type": "object", "properties": {"a": schema}}) == f"{{\n{line}\n}}"


def test_required_properties_have_no_question_mark() -> None:
    schema = {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["b"]}
    assert type_of(schema) == "{\na?: any,\nb: any,\n}"


def test_malformed_schemas_are_any() -> None:
    schemas: list[object] = [None, 5, "object", {"type": 5}, {"type": []}, {"oneOf": 1}]
    assert {type_of(schema) for schema in schemas} == {"any"}
