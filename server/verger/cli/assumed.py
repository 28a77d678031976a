"""What the commands that count money take this Mac to be: flags before configuration before files.

Used by `cost`, `usage`, `providers rank` and `serve`.
"""

from collections.abc import Mapping
from typing import Annotated

import typer

from verger import paths
from verger.config import Config, load_config
from verger.costs.assumptions import AssumedMac, Assumption, load_macs
from verger.costs.prices import Snapshot, load_snapshot

SECTION = "costs."
DEFAULT_MODEL = "gpt-oss-20b"

ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="What it serves; by default what is configured, or the 20B."),
]
MacPriceOption = Annotated[float | None, typer.Option(help="What the Mac cost, in US dollars.")]
YearsOption = Annotated[float | None, typer.Option(help="How long it is used.")]
ResaleOption = Annotated[float | None, typer.Option(help="What is left of its price then, 0 to 1.")]
KwhOption = Annotated[float | None, typer.Option(help="Price of a kWh, in US dollars.")]
IdleOption = Annotated[float | None, typer.Option("--idle-w", help="Its power when idle, W.")]
ActiveOption = Annotated[float | None, typer.Option("--active-w", help="Its power at work, W.")]
DecodeOption = Annotated[
    float | None, typer.Option("--decode-tok-s", help="Tokens a second of a full batch.")
]
PrefillOption = Annotated[
    float | None, typer.Option("--prefill-tok-s", help="Prompt tokens a second.")
]
BusyOption = Annotated[float | None, typer.Option(help="How much of the time it computes, 0 to 1.")]


def shipped_and_fetched() -> Snapshot:
    """Prices and indices: Verger's own, and what was fetched since."""
    return load_snapshot(paths.catalogue_dir(), paths.fetched_dir())


def configured(flags: Mapping[str, float | None]) -> Config:
    """The configuration with the flags named as in [costs]. Raises ConfigError."""
    return load_config({f"{SECTION}{name}": value for name, value in flags.items()})


def assumed_mac(config: Config, model: str | None = None) -> AssumedMac | None:
    """The Mac that serves the model, as far as it is known; None where nobody assumed one.

    Without a model: the configured one, or the 20B.
    """
    macs = load_macs(paths.catalogue_dir())
    if model is None:
        model = config.engine.model if config.engine.model in macs else DEFAULT_MODEL
    mac = macs.get(model)
    return None if mac is None else mac.with_known(_known(config))


def required_mac(config: Config, model: str | None) -> AssumedMac:
    """As `assumed_mac`; a model without one is wrong usage."""
    mac = assumed_mac(config, model)
    if mac is None:
        known = ", ".join(load_macs(paths.catalogue_dir()))
        raise typer.BadParameter(f"no Mac is assumed for {model}; known: {known}")
    return mac


def _known(config: Config) -> Mapping[str, Assumption]:
    """What somebody said, with where they said it."""
    return {
        key.removeprefix(SECTION): Assumption(setting.value, setting.origin)
        for key, setting in config.settings.items()
        if key.startswith(SECTION) and setting.value is not None
    }
