"""Time to first token of a conversation's second turn ÷ that of its first, by prompt length.

Called by `replay.py` with a server that is ready. Every conversation is new to the server, and one
is measured at a time; between the turns the server has the time that a person needs to read. Must
not know scenarios or how the report is printed.
"""

import asyncio
from collections.abc import Callable
from random import Random

from verger.bench.chat import Answer, Options, Target, ask_chat
from verger.bench.children import BenchError
from verger.bench.prompts import joined_text
from verger.bench.reader import ReadError
from verger.bench.replay_report import ReplayPlan, SecondTurnReport, second_turn_report
from verger.bench.served import settled_status
from verger.formats.conversation import Conversation, Effort, Message, Role
from verger.formats.vocabulary import Vocabulary

READING_S = 3.0
"""What passes between the turns where the server does not tell whether it is idle."""
REQUEST_LIMIT_S = 900.0
ANSWER_TOKENS = 128
QUESTION_TOKENS = 8
WARM_UP_TOKENS = 256


async def measure_second_turns(
    plan: ReplayPlan, target: Target, notify: Callable[[str], None]
) -> list[SecondTurnReport]:
    """All lengths of the plan, after a conversation that only warms up. Raises BenchError."""
    random = Random(plan.seed)  # noqa: S311 (not secrets)
    await _two_turns(WARM_UP_TOKENS, target, plan.vocabulary, plan.scale.effort, random)
    reports = []
    for tokens in plan.second_turn_tokens:
        notify(f"second turns of {tokens} tokens")
        pairs = [
            await _two_turns(tokens, target, plan.vocabulary, plan.scale.effort, random)
            for _ in range(plan.repeats)
        ]
        reports.append(second_turn_report(pairs))
    return reports


async def _two_turns(
    tokens: int, target: Target, vocabulary: Vocabulary, effort: Effort, random: Random
) -> tuple[Answer, Answer]:
    """The length stands in the instructions, so that the answers are short."""
    instructions = Message(Role.SYSTEM, joined_text(tokens, vocabulary, random))
    question = Message(Role.USER, joined_text(QUESTION_TOKENS, vocabulary, random))
    follow_up = Message(Role.USER, joined_text(QUESTION_TOKENS, vocabulary, random))
    options = Options(ANSWER_TOKENS)
    try:
        first = Conversation((instructions, question), effort=effort)
        cold = await ask_chat(target, first, options, REQUEST_LIMIT_S)
        if await settled_status(target.endpoint, target.key) is None:
            await asyncio.sleep(READING_S)
        second = Conversation((*first.messages, cold.message, follow_up), effort=effort)
        return cold, await ask_chat(target, second, options, REQUEST_LIMIT_S)
    except ReadError as error:
        raise BenchError(f"a request failed: {error}") from None
