"""Drives a runner the way the engine's loop does, on small random gpt-oss models.

`play` is the loop without its socket; `random_gpt_oss` and `real_vocabulary_gpt_oss` make models;
`cold_logits` is the reference: one full forward of mlx-lm's own model.
"""

from collections.abc import Callable, Iterable, Sequence
from random import Random

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.gpt_oss import Model, ModelArgs

from scripts.real_size import ROPE, recipe
from tests.schedulers import PlainScheduler, make_scheduler
from verger.engine.device.model import GptOss, describe
from verger.engine.device.runner import MlxRunner
from verger.engine.device.sampling import Sampler
from verger.engine.prefix_files import SaveOrder
from verger.engine.scheduler import Scheduler
from verger.messages import Finished, FromEngine, Hello, Logprob, RowTokens, Submit, Tokens

HELLO = Hello(version=1, message_id=1, special_ids=[0, 1, 2])


def random_gpt_oss(seed: int, vocabulary_size: int = 512, width: int = 64) -> GptOss:
    """A float32 gpt-oss of four layers whose attention matters to its logits."""
    mx.random.seed(seed)
    args = ModelArgs(
        num_hidden_layers=4,
        num_local_experts=4,
        num_experts_per_tok=2,
        vocab_size=vocabulary_size,
        hidden_size=width,
        intermediate_size=width,
        head_dim=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=128,
        rope_scaling=ROPE,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )
    model = Model(args)
    for block in model.model.layers:
        attention = block.self_attn
        attention.sinks = mx.random.normal((args.num_attention_heads,))
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight = 2 * projection.weight
    mx.eval(model.parameters())
    return describe(model, context_tokens=8192)


def real_proportions_gpt_oss(seed: int, layers: int = 2, width: int = 64) -> GptOss:
    """gpt-oss-20B's vocabulary, KV heads and routing, with few narrow layers."""
    mx.random.seed(seed)
    args = ModelArgs(
        num_hidden_layers=layers,
        num_local_experts=32,
        num_experts_per_tok=4,
        vocab_size=201_088,
        hidden_size=width,
        intermediate_size=width,
        num_attention_heads=16,
        rope_scaling=ROPE,
    )
    model = Model(args)
    nn.quantize(model, class_predicate=recipe)
    mx.eval(model.parameters())
    return describe(model, context_tokens=131_072)


def runner_of(model: GptOss, max_rows: int = 16, sampler: Sampler | None = None) -> MlxRunner:
    """A runner on an already loaded model."""
    default = Sampler(model.vocabulary_size, HELLO, Random(0))
    return MlxRunner(model, sampler or default, max_rows)


def scheduler_of(
    runner: MlxRunner, alone: int = 2048, beside: int = 512, limit_bytes: int = 1 << 40
) -> PlainScheduler:
    """A scheduler with chunks of fixed size and, unless told, more memory than any test needs."""
    return make_scheduler(
        max_rows=runner.kv.max_rows,
        max_waiting=64,
        alone=alone,
        beside=beside,
        context_tokens=runner.context_tokens,
        kv=runner.kv,
        limit_bytes=limit_bytes,
    )


def play(
    runner: MlxRunner,
    scheduler: Scheduler,
    arrivals: Iterable[tuple[int, Submit]],
    before_step: Callable[[int], None] = lambda step: None,
) -> list[FromEngine]:
    """Run requests that arrive at given steps to their end; every frame that came out."""
    due = sorted(arrivals, key=lambda arrival: arrival[0])
    frames: list[FromEngine] = []
    step = 0
    while due or not scheduler.is_idle:
        while due and due[0][0] <= step:
            scheduler.submit(due.pop(0)[1], float(step))
        before_step(step)
        _turn(runner, scheduler, float(step))
        scheduler.check_integrity()
        frames += scheduler.take_frames()
        step += 1
    return frames


def _turn(runner: MlxRunner, scheduler: Scheduler, now_s: float) -> None:
    if scheduler.must_settle:
        scheduler.settle(runner.collect(), 1.0, now_s)
    step = scheduler.plan(now_s)
    for edit in step.edits:
        assert not isinstance(edit, SaveOrder), "there is no disk"
        runner.apply(edit)
    if not step.plan.is_empty:
        runner.launch(step.plan)
    if scheduler.launched > (0 if step.plan.is_empty else 1):
        scheduler.settle(runner.collect(), 1.0, now_s)


def tokens_of(frames: Iterable[FromEngine], request_id: int) -> RowTokens:
    """All that one request was given."""
    ids: list[int] = []
    logprobs: list[Logprob] = []
    for frame in frames:
        if isinstance(frame, Tokens):
            for row in frame.rows:
                if row.request_id == request_id:
                    ids += row.ids
                    logprobs += row.logprobs
    return RowTokens(request_id, ids, logprobs)


def finished_of(frames: Iterable[FromEngine]) -> dict[int, Finished]:
    """How each request ended."""
    return {frame.request_id: frame for frame in frames if isinstance(frame, Finished)}


def cold_logits(model: GptOss, ids: Sequence[int]) -> mx.array:
    """Logits (len(ids), vocabulary) of one full forward of mlx-lm's own model."""
    logits: mx.array = model.reference(mx.array([list(ids)]))
    return logits[0]


def random_ids(random: Random, count: int, vocabulary_size: int = 512) -> list[int]:
    """Ordinary ids."""
    return [random.randrange(3, vocabulary_size) for _ in range(count)]


def worst_error(model: GptOss, prompt: Sequence[int], answer: RowTokens) -> float:
    """The oracle: the largest difference between a reported log-probability and the one under a
    cold forward of everything that was said. Needs `Submit.logprobs` ≥ 0."""
    logits = cold_logits(model, [*prompt, *answer.ids])[len(prompt) - 1 : -1]
    expected = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    at = mx.array(answer.ids)[:, None]
    reported = mx.array([entry.logprob for entry in answer.logprobs])
    return float(mx.abs(mx.take_along_axis(expected, at, axis=-1)[:, 0] - reported).max())
