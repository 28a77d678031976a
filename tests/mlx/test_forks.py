"""The choices of one answer share a prefill: each must be what it would be on its own."""

from random import Random

import pytest

from tests.mlx.harness import (
    play,
    random_gpt_oss,
    random_ids,
    runner_of,
    scheduler_of,
    tokens_of,
    worst_error,
)
from verger.messages import Sampling, Submit

pytestmark = pytest.mark.mlx

TOLERANCE = 1e-3
CHOICES = 4


@pytest.mark.parametrize("prompt_tokens", [40, 300], ids=["window open", "window wrapped"])
def test_each_choice_is_what_it_would_be_alone(prompt_tokens: int) -> None:
    model = random_gpt_oss(seed=6)
    prompt = random_ids(Random(6), prompt_tokens)
    beside = Submit(50, random_ids(Random(7), 60), 40, [], Sampling(seed=1), logprobs=0)
    together = Submit(
        0, prompt, 20, [], Sampling(seed=9), logprobs=0, forks=list(range(1, CHOICES))
    )
    runner = runner_of(model)
    scheduler = scheduler_of(runner, alone=128, beside=128)
    frames = play(runner, scheduler, [(0, beside), (2, together)])
    assert scheduler.prefill_tokens == prompt_tokens + 60
    assert worst_error(model, beside.prompt, tokens_of(frames, 50)) <= TOLERANCE
    answers = [tokens_of(frames, choice) for choice in range(CHOICES)]
    assert len({tuple(answer.ids) for answer in answers}) == CHOICES
    for choice, answer in enumerate(answers):
        assert worst_error(model, prompt, answer) <= TOLERANCE
        alone = Submit(choice, prompt, 20, [], Sampling(seed=9, choice=choice))
        frames = play(single := runner_of(model), scheduler_of(single), [(0, alone)])
        assert tokens_of(frames, choice).ids == answer.ids
