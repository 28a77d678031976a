"""What a full-size gpt-oss costs a step: `.venv/bin/python -m scripts.real_size [--layers 24]`.

A random gpt-oss-20B (its vocabulary, widths, experts and quantisation) decodes 16 rows, one of
them behind a long context, and a prompt joins while they run. Reports passes over the experts'
weights per step, peak bytes at the join, and milliseconds of step and sampler. Meant for a GPU,
Metal or CUDA; with `--layers 2 --width 64 --long 600` it runs on a CPU too, where the counts and
bytes hold and the times mean nothing.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from random import Random
from statistics import median

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm.models.gpt_oss import Model, ModelArgs

from verger.engine.device.model import GptOss, cast_to_float32, describe
from verger.engine.device.runner import MlxRunner
from verger.engine.device.sampling import Sampler
from verger.engine.places import Places
from verger.engine.steps import Open, Place, Plan, Prefill
from verger.messages import Hello, Sampling, Submit

ROWS = 16
SHORT_TOKENS = 200
CHUNK_TOKENS = 512
HELLO = Hello(version=1, message_id=200_008, special_ids=list(range(199_998, 201_088)))
ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
}


def random_gpt_oss_20b(layers: int, width: int) -> GptOss:
    """gpt-oss-20B in everything but its weights and, if asked, its depth and width."""
    mx.random.seed(0)
    args = ModelArgs(
        num_hidden_layers=layers,
        num_local_experts=32,
        num_experts_per_tok=4,
        hidden_size=width,
        intermediate_size=width,
        rope_scaling=ROPE,
    )
    model = Model(args)
    model.set_dtype(mx.bfloat16)
    nn.quantize(model, class_predicate=recipe)
    # One at a time: all of them unquantised would need 40 GB.
    tree_map(mx.eval, model.parameters())
    if mx.default_device() == mx.Device(mx.cpu):
        cast_to_float32(model)
    return describe(model, context_tokens=131_072)


def recipe(path: str, module: nn.Module) -> bool | dict[str, object]:
    """Experts MXFP4, the rest 8 bit: how the published models are quantised."""
    if not hasattr(module, "to_quantized"):
        return False
    if "experts" in path:
        return {"group_size": 32, "bits": 4, "mode": "mxfp4"}
    return {"group_size": 64, "bits": 8}


class Passes:
    """Counts how often a layer's experts are called."""

    def __init__(self, experts: Callable[[mx.array], mx.array]) -> None:
        self.calls = 0
        self._experts = experts

    def __call__(self, x: mx.array) -> mx.array:
        self.calls += 1
        return self._experts(x)


def open_row(runner: MlxRunner, place: Place, request_id: int, prompt: list[int]) -> None:
    """Give a prompt a row."""
    submit = Submit(request_id, prompt, 1000, [], Sampling(seed=request_id, top_p=0.95))
    runner.apply(Open(submit, place))


def prefill(runner: MlxRunner, place: Place, request_id: int, tokens: int, random: Random) -> None:
    """Open a row and compute its prompt in chunks."""
    open_row(runner, place, request_id, [random.randrange(199_998) for _ in range(tokens)])
    for start in range(0, tokens, CHUNK_TOKENS):
        runner.launch(Plan((Prefill(request_id, start, min(tokens, start + CHUNK_TOKENS)),)))
        runner.collect()


def step_ms(runner: MlxRunner, plans: list[Plan]) -> float:
    """Median milliseconds of steps launched ahead, as the loop does."""
    times = []
    runner.launch(plans[0])
    for plan in plans[1:]:
        started = time.perf_counter()
        runner.launch(plan)
        runner.collect()
        times.append(1000 * (time.perf_counter() - started))
    runner.collect()
    return round(median(times), 2)


def sampler_ms(sampling: Sampling, repeats: int) -> float:
    """Median milliseconds for one step's ids from 16 rows of logits over the vocabulary."""
    sampler = Sampler(201_088, HELLO, Random(0))
    rows = [sampler.open(Submit(i, [0], 1, [], sampling)) for i in range(ROWS)]
    logits = mx.random.normal((ROWS, 201_088))
    mx.eval(logits)
    times = []
    for position in range(repeats):
        started = time.perf_counter()
        mx.eval(*sampler.sample(logits, rows, [position] * ROWS).arrays())
        times.append(1000 * (time.perf_counter() - started))
    return round(median(times), 2)


def measure(layers: int, width: int, long_tokens: int, steps: int) -> dict[str, object]:
    """All of it, as one JSON object."""
    model = random_gpt_oss_20b(layers, width)
    passes = [Passes(layer.experts) for layer in model.layers]
    counted = tuple(
        replace(layer, experts=count) for layer, count in zip(model.layers, passes, strict=True)
    )
    sampler = Sampler(model.vocabulary_size, HELLO, Random(0))
    runner = MlxRunner(replace(model, layers=counted), sampler, ROWS)
    random, places = Random(0), Places(ROWS)
    prefill(runner, places.take(long_tokens + steps + 1), 0, long_tokens, random)
    for request_id in range(1, ROWS - 1):
        place = places.take(SHORT_TOKENS + steps + 1)
        prefill(runner, place, request_id, SHORT_TOKENS, random)
    running = tuple(range(ROWS - 1))
    ms = step_ms(runner, [Plan(decodes=running)] * steps)

    active_bytes = mx.get_active_memory()
    kv_bytes = runner.memory().kv_bytes
    mx.reset_peak_memory()
    before = sum(count.calls for count in passes)
    open_row(runner, places.take(SHORT_TOKENS + 1), ROWS, [1] * SHORT_TOKENS)
    runner.launch(Plan((Prefill(ROWS, 0, SHORT_TOKENS),), running))
    runner.collect()
    return {
        "device": runner.device,
        "layers": layers,
        "width": width,
        "long_context_tokens": long_tokens,
        "decode_step_ms": ms,
        "tokens_per_s": round(1000 * len(running) / ms, 1),
        "expert_passes_per_layer_at_join": (sum(c.calls for c in passes) - before) / layers,
        "kv_bytes": kv_bytes,
        "join_kv_growth_bytes": runner.memory().kv_bytes - kv_bytes,
        "join_peak_rise_bytes": mx.get_peak_memory() - active_bytes,
        "sampler_greedy_ms": sampler_ms(Sampling(temperature=0), steps),
        "sampler_temperature_ms": sampler_ms(Sampling(seed=1), steps),
        "sampler_top_p_ms": sampler_ms(Sampling(seed=1, top_p=0.95), steps),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A full-size gpt-oss step on this machine.")
    parser.add_argument("--layers", type=int, default=24, help="an even number; 24 is gpt-oss-20B")
    parser.add_argument("--width", type=int, default=2880, help="of the residual and the experts")
    parser.add_argument("--long", type=int, default=20_000, help="tokens of the long row's prompt")
    parser.add_argument("--steps", type=int, default=20, help="steps to take the median of")
    given = parser.parse_args()
    print(json.dumps(measure(given.layers, given.width, given.long, given.steps), indent=2))
