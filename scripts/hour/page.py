"""The first hour as a page for people, in Markdown: what failed, the figures, then all answers.

Called by `scripts/first_hour.py` before each part and after all. Pure. Must not know how parts are
carried out.
"""

import json
from collections.abc import Sequence
from html import escape

from scripts.hour.parts import Result
from scripts.hour.rows import rows_of


def page(title: str, results: Sequence[Result], running: str | None) -> str:
    """`running` is the part that runs now; None when all is over."""
    lines = [f"# The first hour: {title}", ""]
    if running is not None:
        lines += [f"`{running}` runs now; if nothing does, the run broke off there.", ""]
    lines += [*_problems(results), *_figures(results), *_parts(results)]
    for result in results:
        if result.answer is not None:
            shown = json.dumps(result.answer, indent=1, ensure_ascii=False)
            lines += ["", f"## {result.name}", "", "```json", shown, "```"]
    return "\n".join(lines) + "\n"


def _problems(results: Sequence[Result]) -> list[str]:
    """Parts that failed, and targets that were missed."""
    failed = [
        f"- {_red(f'{one.name} failed: {one.reason}')}" for one in results if one.state == "failed"
    ]
    missed = [
        f"- {_red('missed')}: {row.what}: {row.figure}"
        for one in results
        for row in rows_of(one.name, one.answer)
        if row.is_met is False
    ]
    return [*failed, *missed] or ["Nothing failed."]


def _figures(results: Sequence[Result]) -> list[str]:
    lines = ["", "| what | figure | target |", "|---|---|---|"]
    for one in results:
        for row in rows_of(one.name, one.answer):
            verdict = "" if row.is_met is None else "met" if row.is_met else _red("missed")
            lines.append(f"| {_cell(row.what)} | {_cell(row.figure)} | {verdict} |")
    return lines


def _parts(results: Sequence[Result]) -> list[str]:
    rows = [f"| {r.name} | {r.state} | {r.wall_s:g} | {_cell(r.reason)} |" for r in results]
    return ["", "| part | state | s | |", "|---|---|---|---|", *rows]


def _red(text: str) -> str:
    """Bold where colours are not shown."""
    return f'<strong style="color: red">{escape(text)}</strong>'


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
