"""gpt-oss-20B's proportions with two narrow layers: vocabulary 201,088, eight KV heads of 64,
four of 32 experts, the published quantisation. Shows what a small vocabulary hides: a step that
copies the batch, sorts the vocabulary, or loops over rows; and that real ids survive the whole way.
"""

import io
from random import Random

import mlx.core as mx
import pytest

from tests.mlx.direct import Direct
from tests.mlx.harness import (
    play,
    random_ids,
    real_proportions_gpt_oss,
    runner_of,
    scheduler_of,
    tokens_of,
    worst_error,
)
from tests.oracle import full_vocabulary
from verger.engine.device.forward import Step, decode_group, forward
from verger.engine.device.kv import KVShape, KVStore
from verger.engine.device.model import GptOss
from verger.engine.device.sampling import Sampler
from verger.engine.places import Places
from verger.engine.steps import Plan, Prefill
from verger.formats.conversation import Conversation, Message, Role
from verger.formats.harmony import HarmonyParser, render
from verger.messages import FinishReason, Hello, Sampling, Submit

pytestmark = [pytest.mark.mlx]

VOCABULARY = 201_088
LOGITS_BYTES = 17 * VOCABULARY * 4


@pytest.fixture(scope="module")
def model() -> GptOss:
    return real_proportions_gpt_oss(seed=2)


def test_sixteen_rows_of_every_kind_pass_the_oracle(model: GptOss) -> None:
    random = Random(3)
    kinds = (
        Sampling(temperature=0),
        Sampling(seed=1),
        Sampling(seed=2, top_p=0.9),
        Sampling(seed=3, top_k=40, min_p=0.01, frequency_penalty=0.5),
    )
    requests = [
        Submit(i, random_ids(random, 20 + 13 * i, VOCABULARY), 6, [], kinds[i % 4], logprobs=3)
        for i in range(16)
    ]
    runner = runner_of(model)
    frames = play(runner, scheduler_of(runner), [(i // 4, r) for i, r in enumerate(requests)])
    for request in requests:
        answer = tokens_of(frames, request.request_id)
        assert len(answer.ids) == 6
        assert worst_error(model, request.prompt, answer) <= 1e-3
        for entry in answer.logprobs:
            assert entry.top_logprobs == sorted(entry.top_logprobs, reverse=True)
            assert len(entry.top_ids) == 3


def test_a_join_copies_nothing_of_the_rows_that_run(model: GptOss) -> None:
    """15 rows of 300 tokens sit in two blocks of 16 MB. When a short row joins them, the peak may
    rise by its own block and by a step's logits, not by a copy of the batch."""
    direct = Direct(model)
    runner = direct.runner
    random = Random(4)
    for i in range(15):
        direct.open(i, random_ids(random, 300, VOCABULARY))
        direct.prefill(i)
    running = tuple(range(15))
    direct.decode(running, 3)
    held = runner.memory().kv_bytes
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    direct.open(15, random_ids(random, 50, VOCABULARY))
    direct.launch(Plan((Prefill(15, 0, 50),), running))
    direct.launch(Plan(decodes=(*running, 15)))
    direct.collect()
    grown = runner.memory().kv_bytes - held
    rise = mx.get_peak_memory() - before
    print(f"KV {held / 1e6:.1f} MB, grown by {grown / 1e6:.1f} MB, peak + {rise / 1e6:.1f} MB")
    assert rise < grown + 1.5 * LOGITS_BYTES < held + grown


def test_a_decode_step_costs_the_same_calls_for_two_rows_and_fifteen(model: GptOss) -> None:
    """Rows that share a block share every call: the graph does not grow with the batch. (At 16
    rows x top 4 mlx-lm sorts the tokens by expert.)"""
    assert graph_size(model, rows=15) == graph_size(model, rows=2)


def graph_size(model: GptOss, rows: int) -> int:
    """How many operations the logits of one decode step are made of."""
    shape = KVShape(len(model.layers) // 2, model.kv_heads, model.head_dim, model.dtype)
    store = KVStore.create(full=shape, sliding=shape, max_rows=16, window=model.window)
    places = Places(max_rows=16)
    placed = [store.open(places.take(100)) for _ in range(rows)]
    mx.eval(*store.arrays())
    at = [50] * rows
    step = Step(
        positions=mx.array(at),
        full_groups=(decode_group(placed[0].block, [row.block_row for row in placed], at, 0),),
        ring_groups=(decode_group(store.ring, [row.ring_row for row in placed], at, 0),),
        segments=(),
        sampled=mx.arange(rows),
        last_segments=(),
        last_sampled=mx.arange(rows),
    )
    logits = forward(model, store, mx.zeros((rows,), mx.int32), step)
    return _count_operations(logits)


def _count_operations(array: mx.array) -> int:
    text = io.StringIO()
    mx.export_to_dot(text, array)
    return text.getvalue().count("[label")


@pytest.mark.oracle
def test_real_ids_go_through_engine_and_parser(model: GptOss) -> None:
    """The official tokenizer, a rendered prompt, sampling over the full vocabulary, the parser."""
    vocabulary = full_vocabulary()
    hello = Hello(1, vocabulary.special("<|message|>"), sorted(vocabulary.specials))
    stops = [vocabulary.special(name) for name in ("<|return|>", "<|call|>", "<|endoftext|>")]
    prompt = render(Conversation((Message(Role.USER, "Grüße, 世界 🌍"),)), vocabulary)
    sampler = Sampler(VOCABULARY, hello, Random(0))
    requests = [
        Submit(i, prompt.ids, 40, stops, Sampling(seed=i, frequency_penalty=0.2)) for i in range(4)
    ]
    runner = runner_of(model, sampler=sampler)
    frames = play(runner, scheduler_of(runner), [(0, request) for request in requests])
    for request in requests:
        answer = tokens_of(frames, request.request_id)
        assert max(answer.ids) < VOCABULARY
        parser = HarmonyParser(vocabulary, [])
        parser.feed(answer.ids)
        parser.close(FinishReason.LENGTH)
