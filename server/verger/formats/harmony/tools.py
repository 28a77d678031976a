"""Declared tools → the `# Tools` section of Harmony's developer message.

Called by `render.py`. Must not know messages, tokens or a vocabulary. Schemas recurse, so whoever
parsed the request has bounded their depth.
"""

from collections.abc import Sequence

from verger.formats.conversation import Tool
from verger.formats.harmony.typescript import type_of


def tools_section(tools: Sequence[Tool]) -> str:
    """All tools as TypeScript declarations in the namespace `functions`."""
    declarations = "\n\n".join(_declaration(tool) for tool in tools)
    return (
        "# Tools\n\n## functions\n\nnamespace functions {\n\n"
        f"{declarations}\n\n}} // namespace functions"
    )


def _declaration(tool: Tool) -> str:
    comment = "".join(f"// {line}\n" for line in _lines(tool.description))
    argument = "" if tool.parameters is None else f"_: {type_of(tool.parameters)}"
    return f"{comment}type {tool.name} = ({argument}) => any;"


def _lines(text: str) -> list[str]:
    """Split at LF and CRLF only, without an empty line at the end; "" has no lines."""
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
