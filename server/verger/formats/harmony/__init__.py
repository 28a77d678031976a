"""Harmony, the prompt and answer format of gpt-oss: conversation → ids, ids → events."""

from verger.formats.harmony.events import (
    ContentDelta,
    Event,
    Finish,
    Outcome,
    ReasoningDelta,
    Repair,
    ToolCallDelta,
    ToolCallStart,
)
from verger.formats.harmony.parse import HarmonyParser
from verger.formats.harmony.render import Prompt, render, render_history

__all__ = [
    "ContentDelta",
    "Event",
    "Finish",
    "HarmonyParser",
    "Outcome",
    "Prompt",
    "ReasoningDelta",
    "Repair",
    "ToolCallDelta",
    "ToolCallStart",
    "render",
    "render_history",
]
