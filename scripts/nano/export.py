"""Writes the model folder `models/nano` from trained weights: `python -m scripts.nano.export`.

Needs MLX, not torch. The layout is that of mlx-community's MXFP4-Q8 gpt-oss folders: experts in
MXFP4, everything else with 8 bits, scales, biases, norms and sinks in float32.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.gpt_oss import Model, ModelArgs

from scripts.nano.config import NanoConfig
from scripts.nano.weights import FloatArray, load_weights
from verger.formats.vocabulary import Vocabulary

EXPERTS = {"group_size": 32, "bits": 4, "mode": "mxfp4"}
OTHERS = {"group_size": 64, "bits": 8, "mode": "affine"}
MAX_BYTES = 3_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description="Export trained weights to a model folder.")
    parser.add_argument("--source", type=Path, default=Path(".train"))
    parser.add_argument("--target", type=Path, default=Path("models/nano"))
    arguments = parser.parse_args()
    export(arguments.source, arguments.target)


def export(source: Path, target: Path) -> None:
    """`source` holds weights.npz and tokenizer.json; the files of `target` are replaced."""
    mx.set_default_device(mx.cpu)
    target.mkdir(parents=True, exist_ok=True)
    vocabulary = Vocabulary.from_file_bytes((source / "tokenizer.json").read_bytes())
    config = NanoConfig(vocab_size=vocabulary.size)
    model = build(config, load_weights(source / "weights.npz"))
    overrides = quantise(model)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(target / "model.safetensors"), weights, metadata={"format": "mlx"})
    shutil.copyfile(source / "tokenizer.json", target / "tokenizer.json")
    write_json(target / "config.json", config_json(config, vocabulary, overrides))
    write_json(target / "tokenizer_config.json", tokenizer_json())
    size = sum(path.stat().st_size for path in target.iterdir())
    if size > MAX_BYTES:
        raise ValueError(f"{target} has {size} bytes, more than {MAX_BYTES}")
    print(f"{target}: {size} bytes")


def build(config: NanoConfig, arrays: dict[str, FloatArray]) -> Model:
    """mlx-lm's own model with the trained weights; a missing or surplus name is an error."""
    model = Model(ModelArgs.from_dict(config.as_json()))
    model.load_weights([(name, mx.array(array)) for name, array in arrays.items()], strict=True)
    return model


def quantise(model: Model) -> dict[str, dict[str, Any]]:
    """Quantises in place; returns the overrides for `config.json`: all layers but the experts."""
    overrides: dict[str, dict[str, Any]] = {}

    def choose(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if not hasattr(module, "to_quantized"):
            return False
        if ".experts." in path:
            return True
        overrides[path] = OTHERS
        return OTHERS

    nn.quantize(model, **EXPERTS, class_predicate=choose)
    return overrides


def config_json(
    config: NanoConfig, vocabulary: Vocabulary, overrides: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    stops = [vocabulary.special(name) for name in ("<|return|>", "<|call|>", "<|endoftext|>")]
    return {
        **config.as_json(),
        "eos_token_id": stops,
        "pad_token_id": vocabulary.special("<|endoftext|>"),
        "quantization": {**EXPERTS, **overrides},
    }


def tokenizer_json() -> dict[str, Any]:
    """What `transformers`, and so mlx-lm's own loader, wants to know besides tokenizer.json."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|return|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
