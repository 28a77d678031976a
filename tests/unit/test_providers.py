"""[[providers]] and the kinds of models/providers: what is taken, and what is said of the rest."""

from pathlib import Path

import msgspec
import pytest

from tests.providers import KEY, KINDS, MODEL, MODEL_ID, key_file, provider_of
from verger import paths
from verger.config import ProviderConfig
from verger.costs.prices import load_snapshot
from verger.errors import ConfigError
from verger.gateway import providers
from verger.gateway.providers import Provider, Target, load_kinds, load_providers

LISTED = load_snapshot(paths.catalogue_dir())
PRICE = {"input_usd": 3.0, "output_usd": 5.0}
MODELS = {MODEL: MODEL_ID}


def load(folder: Path, **fields: object) -> Provider:
    config = msgspec.convert(
        {"name": "p", "models": MODELS, "price": PRICE, **fields}, ProviderConfig
    )
    (provider,) = load_providers([config], KINDS, folder, LISTED)
    return provider


def test_a_provider_that_is_called_like_a_kind_is_of_that_kind(tmp_path: Path) -> None:
    provider = load(tmp_path, name="groq", key_file=str(key_file(tmp_path)))
    assert provider.kind is KINDS["groq"]
    assert provider.base_url == "https://api.groq.com/openai/v1"
    assert (provider.key, provider.problem) == (KEY, None)


def test_any_other_is_only_known_to_be_compatible(tmp_path: Path) -> None:
    provider = load(tmp_path, name="cellar", base_url="http://cellar.local:8000/v1/")
    assert provider.kind is KINDS["compatible"]
    assert provider.base_url == "http://cellar.local:8000/v1"
    assert provider.key is None


def test_a_key_is_never_in_a_repr(tmp_path: Path) -> None:
    assert KEY not in repr(provider_of(tmp_path))


def test_relative_key_files_are_looked_for_in_the_state_folder(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    key_file(tmp_path / "secrets")
    assert load(tmp_path, name="groq", key_file="secrets/key").key == KEY


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "openruter"}, "unknown kind 'openruter'; the nearest known one is 'openrouter'"),
        ({}, "needs its own base_url"),
        ({"name": "cloud"}, "this name means all providers"),
        ({"kind": "modal"}, "needs its own base_url"),
        ({"base_url": "ftp://host/v1"}, "base_url must be http"),
        ({"base_url": "https://user:word@host/v1"}, "base_url must be http"),
        ({"base_url": "https://host/v1?key=1"}, "base_url must be http"),
        ({"base_url": "https:///v1"}, "base_url must be http"),
        ({"base_url": "http://api.example.com/v1", "key_file": "key"}, "in the clear; use https"),
        ({"base_url": "http://8.8.8.8/v1", "key_file": "key"}, "in the clear; use https"),
    ],
)
def test_mistakes_are_named(fields: dict[str, str], message: str, tmp_path: Path) -> None:
    key_file(tmp_path)
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, **fields)
    assert message in str(raised.value)
    assert f"[[providers]] {fields.get('name', 'p')}" in str(raised.value)


@pytest.mark.parametrize(
    ("model_id", "kind", "expected"),
    [
        ("openai/gpt-oss-20b", "openrouter", 0.02),
        ("openai/gpt-oss-20b:floor", "openrouter", 0.02),
        ("openai/gpt-oss-20b", "lmstudio", 0.0),
    ],
)
def test_a_price_is_found_by_the_kind_and_the_models_own_name(
    model_id: str, kind: str, expected: float, tmp_path: Path
) -> None:
    key_file(tmp_path)
    url = "http://studio:1234/v1"
    provider = load(
        tmp_path, kind=kind, models={"ours": model_id}, key_file="key", base_url=url, price=None
    )
    assert provider.problem is None
    assert Target(provider, "ours").price.input_usd == expected


def test_a_configured_price_counts_instead_of_the_listed_one(tmp_path: Path) -> None:
    key_file(tmp_path)
    models = {"ours": "openai/gpt-oss-20b"}
    provider = load(tmp_path, name="openrouter", models=models, key_file="key")
    price = Target(provider, "ours").price
    assert (price.input_usd, price.output_usd, price.fee) == (3.0, 5.0, 0.0)


def test_whoever_has_no_price_cannot_be_used(tmp_path: Path) -> None:
    key_file(tmp_path)
    provider = load(tmp_path, name="groq", key_file="key", models={"m": "other"}, price=None)
    assert provider.problem is not None
    assert "what it takes for m" in provider.problem
    assert "price = {" in provider.problem


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]", "192.168.1.9", "studio", "studio.local", "box.internal"]
)
def test_a_key_may_go_by_http_within_the_office(host: str, tmp_path: Path) -> None:
    key_file(tmp_path)
    assert load(tmp_path, base_url=f"http://{host}:1234/v1", key_file="key").key == KEY


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o644])
def test_a_key_that_others_can_read_is_refused(mode: int, tmp_path: Path) -> None:
    key_file(tmp_path).chmod(mode)
    with pytest.raises(ConfigError, match="others can read the key file .*run: chmod 600"):
        load(tmp_path, name="groq", key_file="key")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read: No such file"),
        (b"", "must hold the key on one line"),
        (b"two words", "must hold the key on one line"),
        ("schlüssel".encode(), "must hold the key on one line"),
        (b"x" * (providers.MAX_KEY_BYTES + 1), "must hold the key on one line"),
    ],
)
def test_a_key_that_is_not_there_costs_only_its_provider(
    content: bytes | None, problem: str, tmp_path: Path
) -> None:
    if content is not None:
        key_file(tmp_path).write_bytes(content)
    provider = load(tmp_path, name="groq", key_file="key")
    assert provider.key is None
    assert provider.problem is not None
    assert problem in provider.problem


def test_a_key_of_the_greatest_length_is_taken(tmp_path: Path) -> None:
    key = "x" * providers.MAX_KEY_BYTES
    key_file(tmp_path).write_text(key, encoding="ascii")
    assert load(tmp_path, name="groq", key_file="key").key == key


def test_a_kind_that_needs_a_key_says_where_it_comes_from(tmp_path: Path) -> None:
    provider = load(tmp_path, name="openrouter")
    assert provider.problem is not None
    assert "openrouter.ai" in provider.problem


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('kind = "x"', 'kind = "y"', "differs from the file's name"),
        ('"stop"', '"messages"', "'messages' is no field of a request"),
        ("quirks = []", 'quirks = ["magic"]', "there is no 'magic'"),
        ("quirks = []", "colour = 1", "unknown field `colour`"),
        ('"max_tokens"', '"tokens"', "max_tokens_field"),
    ],
)
def test_a_damaged_kind_is_named(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = """kind = "x"\ntitle = "X"\nneeds_key = false\nkey_hint = "-"\ndata_policy = "-"
max_tokens_field = "max_tokens"\nfields = ["stop"]\nquirks = []\n"""
    file = tmp_path / "x.toml"
    file.write_text(text, encoding="utf-8")
    assert load_kinds(tmp_path)["x"].fields == {"stop"}
    file.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_kinds(tmp_path)
