import json
import re
from pathlib import Path

import pytest

from tests.model_folders import write_model_folder
from verger import paths
from verger.catalogue import (
    AbsentModel,
    Catalogue,
    ModelChoice,
    ModelPlaces,
    find_model,
    load_catalogue,
    pull_command,
    resolve_model,
)
from verger.errors import ConfigError, ModelFolderError
from verger.memory_fit import MachineMemory

GIB = 1 << 30


@pytest.fixture
def catalogue() -> Catalogue:
    return load_catalogue(paths.catalogue_dir())


@pytest.fixture
def places(tmp_path: Path) -> ModelPlaces:
    nano = write_model_folder(tmp_path / "nano", context_tokens=131_072)
    return ModelPlaces(models_dir=tmp_path / "models", nano_dir=nano)


def resolve(
    requested: str,
    catalogue: Catalogue,
    places: ModelPlaces,
    *,
    memory_gb: int = 128,
    is_trial: bool = True,
) -> ModelChoice:
    return resolve_model(
        requested,
        catalogue,
        places,
        memory=MachineMemory.of(memory_gb * GIB),
        is_trial=is_trial,
    )


def test_the_catalogue_holds_the_facts(catalogue: Catalogue) -> None:
    """KV bytes: layers/2 × K and V × 8 heads × 64 × 2 bytes, and × 128 for the snapshot."""
    assert list(catalogue) == ["nano", "gpt-oss-20b", "gpt-oss-120b"]
    for name, layers in {"gpt-oss-20b": 24, "gpt-oss-120b": 36}.items():
        model = catalogue[name]
        assert model.repository == f"mlx-community/{name}-MXFP4-Q8"
        assert model.context_tokens == 131_072
        assert model.kv_bytes_per_token == layers // 2 * 2 * 8 * 64 * 2
        assert model.snapshot_bytes == model.kv_bytes_per_token * 128


def test_a_revision_is_a_commit_or_the_newest(catalogue: Catalogue) -> None:
    """A tag or a short hash could come to mean something else."""
    pinned = {model.id: model.revision for model in catalogue.values() if model.repository}
    assert all(re.fullmatch("main|[0-9a-f]{40}", revision) for revision in pinned.values())
    assert pinned["gpt-oss-20b"] != "main"


def test_nano_in_the_catalogue_agrees_with_its_folder(catalogue: Catalogue) -> None:
    config = json.loads((paths.nano_dir() / "config.json").read_text())
    nano = catalogue["nano"]
    full = config["layer_types"].count("full_attention")
    value_bytes = 2
    per_layer = 2 * config["num_key_value_heads"] * config["head_dim"] * value_bytes
    assert nano.kv_bytes_per_token == full * per_layer
    sliding = config["num_hidden_layers"] - full
    assert nano.snapshot_bytes == sliding * per_layer * config["sliding_window"]
    weights = paths.nano_dir().glob("*.safetensors")
    assert nano.weight_bytes == sum(file.stat().st_size for file in weights)
    assert nano.context_tokens <= config["max_position_embeddings"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id = 'odd'", "missing required field"),
        ("id = 'odd'\ncolour = 'red'", "unknown field"),
        ("id = ", "odd.toml"),
    ],
)
def test_a_damaged_catalogue_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "odd.toml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_catalogue(tmp_path)


def test_a_catalogue_id_must_be_its_files_name(tmp_path: Path) -> None:
    nano = (paths.catalogue_dir() / "nano.toml").read_text()
    (tmp_path / "micro.toml").write_text(nano)
    with pytest.raises(ConfigError, match="differs from the file's name"):
        load_catalogue(tmp_path)


def test_an_id_is_looked_up_in_the_models_folder(catalogue: Catalogue, places: ModelPlaces) -> None:
    folder = write_model_folder(places.models_dir / "gpt-oss-20b")
    choice = resolve("gpt-oss-20b", catalogue, places)
    assert (choice.id, choice.folder.path) == ("gpt-oss-20b", folder)
    assert choice.notice is None


def test_the_context_is_the_smaller_of_catalogue_and_folder(
    catalogue: Catalogue, places: ModelPlaces
) -> None:
    write_model_folder(places.models_dir / "gpt-oss-20b", context_tokens=5000)
    assert resolve("gpt-oss-20b", catalogue, places).context_tokens == 5000
    assert resolve("nano", catalogue, places).context_tokens == catalogue["nano"].context_tokens


def test_an_absent_model_is_refused_with_the_command_that_gets_it(
    catalogue: Catalogue, places: ModelPlaces
) -> None:
    with pytest.raises(ModelFolderError) as raised:
        resolve("gpt-oss-20b", catalogue, places)
    assert "verger pull gpt-oss-20b" in str(raised.value)
    assert "12.1 GB" in str(raised.value)


def find(
    requested: str, catalogue: Catalogue, places: ModelPlaces, *, memory_gb: int = 24
) -> AbsentModel:
    """From the office's network."""
    memory = MachineMemory.of(memory_gb * GIB)
    found = find_model(requested, catalogue, places, memory=memory, is_trial=False)
    assert isinstance(found, AbsentModel)
    return found


@pytest.mark.parametrize(
    ("requested", "memory_gb", "expected"),
    [
        ("gpt-oss-20b", 128, "gpt-oss-20b"),
        ("auto", 24, "gpt-oss-20b"),
        ("auto", 96, "gpt-oss-120b"),
    ],
)
def test_what_is_to_be_fetched_is_known_before_it_is_there(
    catalogue: Catalogue, places: ModelPlaces, requested: str, memory_gb: int, expected: str
) -> None:
    absent = find(requested, catalogue, places, memory_gb=memory_gb)
    assert absent.model is catalogue[expected]
    assert absent.path == places.models_dir / expected
    assert absent.reason.endswith(f"verger pull {expected}")


def test_a_damaged_model_is_one_to_be_fetched_again(
    catalogue: Catalogue, places: ModelPlaces
) -> None:
    (write_model_folder(places.models_dir / "gpt-oss-20b") / "model.safetensors").unlink()
    reason = find("gpt-oss-20b", catalogue, places).reason
    assert "model.safetensors is missing" in reason
    assert reason.endswith("verger pull gpt-oss-20b")


def test_a_damaged_embedded_model_cannot_be_fetched(
    catalogue: Catalogue, places: ModelPlaces
) -> None:
    (places.nano_dir / "model.safetensors").unlink()
    with pytest.raises(ModelFolderError, match="missing"):
        find("nano", catalogue, places)


def test_a_machine_for_nothing_has_nothing_to_wait_for(
    catalogue: Catalogue, places: ModelPlaces
) -> None:
    with pytest.raises(ModelFolderError, match="too little memory"):
        find("auto", catalogue, places, memory_gb=8)


def test_a_model_too_large_is_refused_with_the_numbers_and_what_fits(
    catalogue: Catalogue, places: ModelPlaces
) -> None:
    write_model_folder(places.models_dir / "gpt-oss-120b")
    with pytest.raises(ModelFolderError) as raised:
        resolve("gpt-oss-120b", catalogue, places, memory_gb=64)
    assert str(raised.value) == (
        "gpt-oss-120b does not fit this machine: it needs 63.5 GiB (59.1 GiB of weights, 1.2 GiB "
        "of KV for 32,768 tokens, 3.3 GiB to compute in), and may take 48.0 GiB of the 64.0 GiB "
        "that there are. The largest that fits is gpt-oss-20b: verger pull gpt-oss-20b"
    )


def test_a_machine_for_nothing_is_told_so(catalogue: Catalogue, places: ModelPlaces) -> None:
    with pytest.raises(ModelFolderError, match="No model of the catalogue fits but the embedded"):
        resolve("gpt-oss-20b", catalogue, places, memory_gb=16)


def test_a_folder_is_served_under_its_own_name(
    tmp_path: Path, catalogue: Catalogue, places: ModelPlaces
) -> None:
    folder = write_model_folder(tmp_path / "mine", context_tokens=7000)
    choice = resolve(str(folder), catalogue, places)
    assert (choice.id, choice.model, choice.context_tokens) == ("mine", None, 7000)


def test_an_unknown_name_lists_what_there_is(catalogue: Catalogue, places: ModelPlaces) -> None:
    with pytest.raises(ModelFolderError, match="nano, gpt-oss-20b, gpt-oss-120b, auto, or the"):
        resolve("gpt-2", catalogue, places)


def test_auto_takes_the_largest_complete_model_that_fits(
    catalogue: Catalogue, places: ModelPlaces
) -> None:
    for name in ("gpt-oss-20b", "gpt-oss-120b"):
        write_model_folder(places.models_dir / name)
    assert resolve("auto", catalogue, places).id == "gpt-oss-120b"
    assert resolve("auto", catalogue, places, memory_gb=64).id == "gpt-oss-20b"
    assert resolve("auto", catalogue, places, memory_gb=16).id == "nano"


def test_auto_passes_over_a_download_that_is_not_complete(
    catalogue: Catalogue, places: ModelPlaces
) -> None:
    """A restart while a larger model is being fetched must not become an outage."""
    write_model_folder(places.models_dir / "gpt-oss-20b")
    (write_model_folder(places.models_dir / "gpt-oss-120b") / "model.safetensors").unlink()
    assert resolve("auto", catalogue, places).id == "gpt-oss-20b"


def test_auto_falls_back_to_the_embedded_model_and_says_so(
    catalogue: Catalogue, places: ModelPlaces
) -> None:
    choice = resolve("auto", catalogue, places, memory_gb=24)
    assert (choice.id, choice.folder.path) == ("nano", places.nano_dir)
    assert choice.notice is not None
    assert "the embedded test model" in choice.notice
    assert "verger pull gpt-oss-20b" in choice.notice


def test_auto_says_when_no_real_model_would_fit(catalogue: Catalogue, places: ModelPlaces) -> None:
    notice = resolve("auto", catalogue, places, memory_gb=8).notice
    assert notice is not None
    assert "too little memory" in notice


def test_the_embedded_model_is_not_offered_to_the_network_by_default(
    catalogue: Catalogue, places: ModelPlaces
) -> None:
    with pytest.raises(ModelFolderError, match="served on loopback only, and by no service"):
        resolve("auto", catalogue, places, is_trial=False)
    assert resolve("nano", catalogue, places, is_trial=False).id == "nano"


def test_the_command_that_gets_a_model(catalogue: Catalogue) -> None:
    assert pull_command(catalogue["gpt-oss-20b"]) == "verger pull gpt-oss-20b"
