from pathlib import Path

import pytest

from tests.model_folders import TENSOR_BYTES, write_model_folder, write_safetensors
from verger.errors import ModelFolderError
from verger.model_folder import HARMONY_TOKENS, check_model_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model_folder(tmp_path / "model", shards=2)


def refusal(folder: Path) -> str:
    """The one line that a damaged folder costs."""
    with pytest.raises(ModelFolderError) as raised:
        check_model_folder(folder)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_complete_folder_is_described(shards: int, tmp_path: Path) -> None:
    path = write_model_folder(tmp_path / "model", context_tokens=9000, shards=shards)
    checked = check_model_folder(path)
    assert (checked.path, checked.context_tokens) == (path, 9000)
    assert checked.weight_bytes > shards * TENSOR_BYTES


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent") == f"there is no model folder {tmp_path / 'absent'}"


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model", model_type="llama")
    assert "is not a gpt-oss: its model_type is 'llama'" in refusal(folder)


def test_a_config_without_a_context_length(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model", context_tokens=0)
    assert "max_position_embeddings" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_damaged_json(name: str, content: bytes, folder: Path) -> None:
    (folder / name).write_bytes(content)
    assert f"{folder / name} is damaged" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_missing_json(name: str, folder: Path) -> None:
    (folder / name).unlink()
    assert f"cannot read {folder / name}" in refusal(folder)


def test_a_tokenizer_without_harmony_tokens(tmp_path: Path) -> None:
    tokens = HARMONY_TOKENS - {"<|channel|>", "<|call|>"}
    folder = write_model_folder(tmp_path / "model", tokens=tokens)
    assert "lacks the Harmony tokens <|call|> <|channel|>" in refusal(folder)


def test_a_missing_shard(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "model-00002-of-00002.safetensors is missing" in refusal(folder)


def test_no_weights_at_all(tmp_path: Path) -> None:
    folder = write_model_folder(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    assert "model.safetensors is missing" in refusal(folder)


def test_an_index_that_names_nothing(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    assert "names no weight file" in refusal(folder)


def test_a_shard_without_a_tensor_that_the_index_names(folder: Path) -> None:
    write_safetensors(folder / "model-00001-of-00002.safetensors", ["other"])
    assert "lacks the tensor weight.1" in refusal(folder)


@pytest.mark.parametrize("kept_bytes", [0, 4, 8, 50, -TENSOR_BYTES, -1])
def test_a_truncated_shard(kept_bytes: int, folder: Path) -> None:
    """Cut inside the length, inside the header, before the tensors and one byte short."""
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:kept_bytes])
    assert str(shard) in refusal(folder)


def test_a_shard_with_bytes_too_many(folder: Path) -> None:
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes() + b"\0")
    assert f"{shard} is truncated or damaged" in refusal(folder)
