"""Conversations under a scheduler that caches and is short of memory, on a real runner.

Prefixes are found, divided, evicted, copied from running rows and moved between rows, rows grow
and are preempted: every answer must pass the oracle, and host and device must agree on the bytes.
"""

from random import Random

import pytest

from tests.mlx.harness import (
    finished_of,
    play,
    random_gpt_oss,
    random_ids,
    runner_of,
    scheduler_of,
    tokens_of,
    worst_error,
)
from verger.messages import BACKGROUND, BATCH, INTERACTIVE, FinishReason, Sampling, Submit

pytestmark = pytest.mark.mlx

TOLERANCE = 1e-3
ROUNDS = 3
CONVERSATIONS = 4
ANSWER_TOKENS = 10


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_answer_passes_the_oracle_and_every_byte_is_accounted_for(seed: int) -> None:
    model = random_gpt_oss(seed)
    random = Random(seed)
    runner = runner_of(model, max_rows=3)
    limit_bytes = runner.kv.ring_bytes + 4096 * runner.kv.token_bytes
    scheduler = scheduler_of(runner, alone=300, beside=60, limit_bytes=limit_bytes)

    def check_bytes(step: int) -> None:
        if not scheduler.kv.has_edits:
            assert runner.memory().kv_bytes == scheduler.kv.used_bytes <= limit_bytes

    system = random_ids(random, 150)
    said = [[*system, *random_ids(random, 40)] for _ in range(CONVERSATIONS)]
    cached_tokens = 0
    for turn in range(ROUNDS):
        first = 100 * turn
        requests = [_submit(first + i, prompt, turn, random) for i, prompt in enumerate(said)]
        later = [*said[0], *random_ids(random, 30)]
        ahead = Submit(first + 99, later, 0, [], Sampling(), priority=BACKGROUND)
        arrivals = [(random.randrange(12), request) for request in [*requests, ahead]]
        frames = play(runner, scheduler, arrivals, check_bytes)
        finished = finished_of(frames)
        for i, request in enumerate(requests):
            answer = tokens_of(frames, request.request_id)
            assert finished[request.request_id].reason is FinishReason.LENGTH
            assert len(answer.ids) == ANSWER_TOKENS
            assert worst_error(model, request.prompt, answer) <= TOLERANCE
            cached_tokens += finished[request.request_id].cached_tokens
            said[i] += [*answer.ids, *random_ids(random, random.choice([20, 90, 200]))]
    stats = scheduler.cache_stats()
    print(f"{cached_tokens} cached, {stats.evictions} evicted, {stats.preemptions} preempted")
    assert cached_tokens > 0
    assert stats.evictions > 0


def _submit(request_id: int, prompt: list[int], turn: int, random: Random) -> Submit:
    return Submit(
        request_id,
        list(prompt),
        ANSWER_TOKENS,
        [],
        Sampling(seed=request_id),
        logprobs=0,
        boundaries=[150, len(prompt) - 20],
        priority=random.choice([INTERACTIVE, BATCH]),
    )


def test_a_preempted_row_goes_on_as_if_nothing_had_been() -> None:
    """Two rows that cannot both grow: one gives way, and says in the end what it says alone."""
    model = random_gpt_oss(seed=4)
    random = Random(4)
    requests = [
        Submit(i, random_ids(random, 30), 560, [], Sampling(seed=i), logprobs=0) for i in range(2)
    ]
    runner = runner_of(model, max_rows=4)
    limit_bytes = runner.kv.ring_bytes + 1_100 * runner.kv.token_bytes
    scheduler = scheduler_of(runner, limit_bytes=limit_bytes)
    frames = play(runner, scheduler, [(0, request) for request in requests])
    assert scheduler.cache_stats().preemptions > 0
    for request in requests:
        answer = tokens_of(frames, request.request_id)
        assert worst_error(model, request.prompt, answer) <= TOLERANCE
        alone = runner_of(model)
        undisturbed = play(alone, scheduler_of(alone), [(0, request)])
        assert tokens_of(undisturbed, request.request_id).ids == answer.ids
