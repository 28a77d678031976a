"""Providers for tests: of the shipped kinds, reached at whatever address the test serves."""

from pathlib import Path

from verger import paths
from verger.config import PriceConfig, ProviderConfig
from verger.costs.prices import Snapshot
from verger.gateway.providers import Provider, Target, load_kinds, load_providers

KINDS = load_kinds(paths.providers_dir())
KEY = "sk-of-the-tests"
MODEL = "gpt-oss-20b"
MODEL_ID = "openai/gpt-oss-20b"


def key_file(folder: Path, key: str = KEY) -> Path:
    """A private file with a key in it."""
    file = folder / "key"
    file.write_text(f"{key}\n", encoding="ascii")
    file.chmod(0o600)
    return file


def provider_of(
    folder: Path, kind: str = "openrouter", url: str = "http://127.0.0.1:1/v1", name: str = ""
) -> Provider:
    """A provider of a shipped kind, which listens at `url`."""
    config = ProviderConfig(
        name=name or kind,
        models={MODEL: MODEL_ID},
        kind=kind,
        base_url=url,
        key_file=str(key_file(folder)),
        price=PriceConfig(1.0, 4.0),
    )
    (provider,) = load_providers([config], KINDS, folder, Snapshot())
    return provider


def target_of(folder: Path, kind: str = "openrouter", url: str = "http://127.0.0.1:1/v1") -> Target:
    """The one model of such a provider."""
    return Target(provider_of(folder, kind, url), MODEL)
