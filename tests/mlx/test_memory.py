"""How much is left for KV: the formula for a step's peak, held against what MLX measures."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.models.gpt_oss import Model, ModelArgs

from scripts.real_size import ROPE
from tests.mlx.direct import Direct, settled_bytes
from tests.mlx.harness import random_gpt_oss, runner_of
from verger import paths
from verger.catalogue import load_catalogue
from verger.engine.device import memory
from verger.engine.device.model import GptOss, describe
from verger.engine.steps import Plan, Prefill
from verger.errors import ModelFolderError
from verger.memory_fit import BUFFER_CACHE_BYTES, ROWS

pytestmark = pytest.mark.mlx

GIB = 1 << 30


def shaped_gpt_oss(width: int, inner: int, top_k: int, query_heads: int) -> GptOss:
    """Two layers in which one thing or another is large."""
    mx.random.seed(0)
    args = ModelArgs(
        num_hidden_layers=4,
        num_local_experts=8,
        num_experts_per_tok=top_k,
        vocab_size=512,
        hidden_size=width,
        intermediate_size=inner,
        num_attention_heads=query_heads,
        num_key_value_heads=1,
        rope_scaling=ROPE,
    )
    model = Model(args)
    mx.eval(model.parameters())
    return describe(model, context_tokens=8192)


@pytest.mark.parametrize(
    ("width", "inner", "top_k", "query_heads"),
    [
        (512, 512, 4, 2),
        (256, 512, 4, 2),
        (512, 256, 2, 2),
        (64, 64, 1, 8),
    ],
    ids=["even", "wide experts", "wide hidden", "attention"],
)
def test_the_peak_of_a_chunk_is_what_the_formula_says(
    width: int, inner: int, top_k: int, query_heads: int
) -> None:
    tokens = 256
    model = shaped_gpt_oss(width, inner, top_k, query_heads)
    direct = Direct(model)
    direct.open(0, [5] * tokens)
    before = settled_bytes()
    mx.reset_peak_memory()
    direct.launch(Plan((Prefill(0, 0, tokens),)))
    direct.collect()
    mx.synchronize()
    measured = mx.get_peak_memory() - before
    predicted = memory.chunk_bytes(model, tokens, scored_tokens=tokens)
    print(f"measured {measured / 1e6:.1f} MB, predicted {predicted / 1e6:.1f} MB")
    assert 0.5 * predicted <= measured <= predicted


def test_metal_can_spare_what_weights_cache_and_a_step_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = random_gpt_oss(seed=1)
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "get_active_memory", lambda: 13 * GIB)

    def machine(working_set_bytes: int) -> int:
        told = {"max_recommended_working_set_size": working_set_bytes}
        monkeypatch.setattr(mx, "device_info", lambda: told)
        return memory.free_bytes(model, 16)

    step_bytes = 18 * GIB - 13 * GIB - BUFFER_CACHE_BYTES - machine(18 * GIB)
    assert memory.chunk_bytes(model, memory.CHUNK_TOKENS) < step_bytes < GIB
    assert machine(19 * GIB) == machine(18 * GIB) + GIB
    assert machine(8 * GIB) == 0


def test_elsewhere_half_of_what_is_available(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  16 kB\nMemAvailable:    4096 kB\nCached:  7 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    assert memory.free_bytes(random_gpt_oss(seed=1), 16) == 2 << 20
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "none")
    assert memory.available_bytes() > 0


def test_a_runner_says_what_kv_costs_before_it_holds_any() -> None:
    model = random_gpt_oss(seed=1)
    runner = runner_of(model, max_rows=4)
    per_layer = 2 * 2 * 64 * 4
    assert runner.kv.token_bytes == runner.kv.sliding_token_bytes == 2 * per_layer
    assert runner.kv.window == 128
    assert runner.memory().kv_bytes == runner.kv.ring_bytes == 4 * 128 * 2 * per_layer
    assert runner.free_bytes > 0


def test_what_a_step_needs_is_what_the_catalogue_says_of_the_real_models() -> None:
    """Its figures decide what fits before there is a model to ask; layers do not count in them."""
    args = ModelArgs(num_hidden_layers=2, rope_scaling=ROPE)
    model = describe(Model(args), context_tokens=8192)
    assert (model.query_heads, model.vocabulary_size, args.hidden_size) == (64, 201_088, 2880)
    bf16 = replace(model, dtype=mx.bfloat16)
    catalogue = load_catalogue(paths.catalogue_dir())
    for name in ("gpt-oss-20b", "gpt-oss-120b"):
        need = catalogue[name].step_bytes
        assert 0 <= need - memory.step_bytes(bf16, ROWS) < 10_000_000


@pytest.mark.parametrize("spare_bytes", [0, -1])
def test_weights_beyond_what_metal_recommends_are_not_loaded(
    spare_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model-1.safetensors").write_bytes(bytes(600))
    (tmp_path / "model-2.safetensors").write_bytes(bytes(400))
    working_set = {"max_recommended_working_set_size": 1000 + spare_bytes}
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: working_set)
    if spare_bytes == 0:
        memory.require_room(tmp_path)
        return
    with pytest.raises(ModelFolderError, match="does not fit this machine: it needs"):
        memory.require_room(tmp_path)


def test_without_metal_weights_may_take_what_is_available(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(1025))
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable: 1 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    with pytest.raises(ModelFolderError, match="Serve a smaller model"):
        memory.require_room(tmp_path)
