"""The loop that Verger is compared with does the work that it is asked to do."""

from random import Random

import mlx.core as mx
import pytest

from tests.mlx.harness import cold_logits, random_gpt_oss, random_ids
from verger.engine.device.bare_loop import generate
from verger.timings import BareRound

pytestmark = pytest.mark.mlx


def test_every_prompt_gets_its_tokens_and_each_its_time() -> None:
    random = Random(1)
    prompts = [random_ids(random, count) for count in (5, 9, 40)]
    asked = BareRound(prompts=prompts, max_tokens=7, stop_ids=[], prefill_rows=2)
    streams = generate(random_gpt_oss(seed=1).reference, asked).streams
    assert [(stream.prompt_tokens, stream.tokens) for stream in streams] == [
        (5, 7),
        (9, 7),
        (40, 7),
    ]
    for stream in streams:
        assert len(stream.token_s) == 7
        assert stream.token_s == sorted(stream.token_s)
        assert stream.ended_s == stream.token_s[-1]


def test_a_stop_ends_an_answer() -> None:
    model = random_gpt_oss(seed=1)
    prompt = random_ids(Random(1), 12)
    first = mx.argmax(cold_logits(model, prompt)[-1]).item()
    assert isinstance(first, int)
    asked = BareRound(prompts=[prompt], max_tokens=7, stop_ids=[first], prefill_rows=1)
    assert generate(model.reference, asked).streams[0].tokens == 1
