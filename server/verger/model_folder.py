"""Is a folder a complete gpt-oss? Answered from file headers alone, without MLX.

Called by catalogue.py before anything is started, so that a damaged download costs one clear
line instead of a crash minutes later. Reads JSON files and the header of each shard, never a
weight. The safetensors layout: 8 bytes little-endian n, n bytes of JSON, then the tensors, whose
`data_offsets` cover the rest of the file exactly.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from verger.errors import ModelFolderError

HARMONY_TOKENS = frozenset(
    f"<|{name}|>" for name in "start end message channel constrain call return endoftext".split()
)
MAX_HEADER_BYTES = 100_000_000
"""The safetensors library's own limit."""

T = TypeVar("T")


class _Config(Struct):
    model_type: str | None = None
    max_position_embeddings: int = 0


class _AddedToken(Struct):
    id: int
    content: str


class _Tokenizer(Struct):
    added_tokens: list[_AddedToken]


class _Index(Struct):
    weight_map: dict[str, str]


class _Tensor(Struct):
    # `__metadata__`, the one entry of a header that is no tensor, has no offsets.
    data_offsets: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder that has been checked."""

    path: Path
    context_tokens: int
    weight_bytes: int


def check_model_folder(path: Path) -> ModelFolder:
    """Raise ModelFolderError unless the folder holds a whole gpt-oss that speaks Harmony."""
    if not path.is_dir():
        raise ModelFolderError(f"there is no model folder {path}")
    context_tokens = _check_config(path / "config.json")
    _check_tokenizer(path / "tokenizer.json")
    shards = _shards(path)
    for shard, tensors in shards.items():
        _check_shard(shard, tensors)
    weight_bytes = sum(shard.stat().st_size for shard in shards)
    return ModelFolder(path=path, context_tokens=context_tokens, weight_bytes=weight_bytes)


def _check_config(path: Path) -> int:
    config = _read_json(path, _Config)
    if config.model_type != "gpt_oss":
        raise ModelFolderError(f"{path} is not a gpt-oss: its model_type is {config.model_type!r}")
    if config.max_position_embeddings <= 0:
        raise ModelFolderError(f"{path} does not name max_position_embeddings, the context length")
    return config.max_position_embeddings


def _check_tokenizer(path: Path) -> None:
    present = {token.content for token in _read_json(path, _Tokenizer).added_tokens}
    if missing := sorted(HARMONY_TOKENS - present):
        raise ModelFolderError(f"{path} lacks the Harmony tokens {' '.join(missing)}")


def _shards(folder: Path) -> dict[Path, set[str]]:
    """Each weight file with the tensors that the index expects in it (none known: empty)."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return {folder / "model.safetensors": set()}
    shards: dict[Path, set[str]] = {}
    for tensor, name in _read_json(index, _Index).weight_map.items():
        shards.setdefault(folder / name, set()).add(tensor)
    if not shards:
        raise ModelFolderError(f"{index} names no weight file")
    return shards


def _check_shard(path: Path, expected: set[str]) -> None:
    """Compare the header with the file's size and with what the index expects."""
    if not path.is_file():
        raise ModelFolderError(f"{path} is missing: download the model again")
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if 8 + header_bytes > file_bytes or header_bytes > MAX_HEADER_BYTES:
            raise _damaged(path)
        tensors = _decode(path, file.read(header_bytes), dict[str, _Tensor])
    if missing := expected - tensors.keys():
        raise ModelFolderError(f"{path} lacks the tensor {min(missing)}: download it again")
    data_bytes = max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    if file_bytes != 8 + header_bytes + data_bytes:
        raise _damaged(path)


def _damaged(path: Path) -> ModelFolderError:
    return ModelFolderError(f"{path} is truncated or damaged: download it again")


def _read_json(path: Path, expected: type[T]) -> T:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelFolderError(f"cannot read {path}: {error.strerror}") from error
    return _decode(path, content, expected)


def _decode(path: Path, content: bytes, expected: type[T]) -> T:
    try:
        return msgspec.json.decode(content, type=expected)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelFolderError(f"{path} is damaged: {error}") from error
