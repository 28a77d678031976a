"""Writes folders that look like a gpt-oss to the file checks; the weights are a few zeros."""

import json
from collections.abc import Iterable
from pathlib import Path

from verger.model_folder import HARMONY_TOKENS

TENSOR_BYTES = 64


def write_model_folder(
    folder: Path,
    *,
    model_type: str = "gpt_oss",
    context_tokens: int = 4096,
    tokens: Iterable[str] = HARMONY_TOKENS,
    shards: int = 1,
) -> Path:
    """A complete folder; with several shards also the index that lists them."""
    folder.mkdir(parents=True)
    config = {"model_type": model_type, "max_position_embeddings": context_tokens}
    (folder / "config.json").write_text(json.dumps(config))
    added = [{"id": id_, "content": token} for id_, token in enumerate(sorted(tokens))]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    if shards == 1:
        write_safetensors(folder / "model.safetensors", ["weight"])
        return folder
    weight_map = {}
    for number in range(1, shards + 1):
        name = f"model-{number:05}-of-{shards:05}.safetensors"
        write_safetensors(folder / name, [f"weight.{number}"])
        weight_map[f"weight.{number}"] = name
    index = {"metadata": {"total_size": shards * TENSOR_BYTES}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_safetensors(path: Path, names: list[str]) -> None:
    """A file in the safetensors layout, each tensor TENSOR_BYTES zeros."""
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    for number, name in enumerate(names):
        offsets = [number * TENSOR_BYTES, (number + 1) * TENSOR_BYTES]
        header[name] = {"dtype": "F32", "shape": [TENSOR_BYTES // 4], "data_offsets": offsets}
    encoded = json.dumps(header).encode()
    content = len(encoded).to_bytes(8, "little") + encoded + bytes(len(names) * TENSOR_BYTES)
    path.write_bytes(content)
