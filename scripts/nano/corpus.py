"""The texts that nano's tokenizer is trained on: Harmony's fixed wording and generated text.

Called by `scripts.train_nano` once. Pure, seeded.
"""

from collections.abc import Iterator
from random import Random

from scripts.nano import episodes, texts, tools

SEED = 7
GENERATED_TEXTS = 12_000
BOILERPLATE_COPIES = 1_500
BOILERPLATE = (
    "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06\n",
    "Current date: 2026-01-01\n\nReasoning: low\n\nReasoning: medium\n\nReasoning: high\n\n",
    "# Valid channels: analysis, commentary, final. Channel must be included for every message.\n",
    "Calls to these tools must go to the commentary channel: 'functions'.\n",
    "# Instructions\n\n# Tools\n\n## functions\n\n"
    "namespace functions {\n\n} // namespace functions",
    "type = (_: {\n}) => any;\n\ntype = () => any;\n\n// default: string, number, boolean,\n",
    "type string[], number[], boolean[],\n",
    "system developer user assistant analysis commentary to=functions. final json to=assistant ",
    "call me " + episodes.SAID + "it" + episodes.RETURNED,
    *episodes.COPY_THOUGHTS.values(),
    *episodes.CALL_THOUGHTS.values(),
    *episodes.RESULT_THOUGHTS.values(),
)


def tokenizer_corpus() -> Iterator[str]:
    """Always the same texts, in the same order."""
    random = Random(SEED)
    for _ in range(BOILERPLATE_COPIES):
        yield from BOILERPLATE
    for _ in range(GENERATED_TEXTS):
        yield texts.text(random, random.randint(5, 60))
        tool = tools.tool_list(random, 1)[0]
        yield f"call {tool.name} {tools.arguments(random, tool)}"
