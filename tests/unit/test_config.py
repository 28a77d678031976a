from pathlib import Path

import pytest

from verger.config import (
    DEFAULT_ALIASES,
    MAX_PROVIDER_MODELS,
    MAX_PROVIDERS,
    SERVED_MODEL,
    Config,
    load_config,
)
from verger.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.toml"
    file.write_text(text, encoding="utf-8")
    return file


def origin(config: Config, key: str) -> str:
    return config.settings[key].origin


def test_defaults_without_a_file() -> None:
    config = load_config(environ={})
    assert (config.server.host, config.server.port, config.server.heartbeat_s) == (
        "127.0.0.1",
        8374,
        5.0,
    )
    assert (config.engine.model, config.engine.max_rows) == ("auto", 16)
    assert (config.engine.target_itl_ms, config.engine.kv_gib) == (250.0, 0.0)
    assert config.engine.prefix_cache
    assert (config.engine.disk_gib, config.engine.disk_daily_gib) == (20.0, 50.0)
    assert (config.spill.enabled, config.spill.monthly_budget_usd) == (False, 0.0)
    assert (config.spill.ttft_objective_s, config.spill.max_wait_s) == (10.0, 120.0)
    assert config.spill.min_intelligence == "gpt-oss-20b"
    assert (config.lan.bonjour, config.lan.interfaces) == ("auto", "")
    assert {setting.origin for setting in config.settings.values()} == {"default"}


def test_file_beats_default_variable_beats_file_flag_beats_variable(tmp_path: Path) -> None:
    file = write(tmp_path, '[server]\nhost = "::1"\nport = 1\nheartbeat_s = 2\n')
    environ = {"VERGER_SERVER_PORT": "2", "VERGER_ENGINE_MAX_ROWS": "3", "PATH": "/bin"}
    config = load_config({"engine.max_rows": 4, "engine.model": None}, environ, file)
    assert config.server.host == "::1"
    assert config.server.port == 2
    assert config.server.heartbeat_s == 2.0
    assert config.engine.max_rows == 4
    assert config.engine.model == "auto"
    assert origin(config, "server.host") == str(file)
    assert origin(config, "server.port") == "VERGER_SERVER_PORT"
    assert origin(config, "engine.max_rows") == "--max-rows"
    assert origin(config, "engine.model") == "default"


def test_file_in_verger_home_is_read_by_default(verger_home: Path) -> None:
    write(verger_home, "[server]\nport = 9000\n")
    assert load_config(environ={}).server.port == 9000


def test_aliases_of_the_file_are_added_to_the_default_ones(tmp_path: Path) -> None:
    file = write(tmp_path, '[aliases]\nsonnet = "gpt-oss-20b"\n"gpt-4o" = "gpt-oss-120b"\n')
    aliases = load_config(environ={}, file=file).aliases
    assert aliases["sonnet"] == "gpt-oss-20b"
    assert aliases["gpt-4o"] == "gpt-oss-120b"
    assert aliases["gpt-5-mini"] == DEFAULT_ALIASES["gpt-5-mini"] == SERVED_MODEL


PRICED = "[[providers]]\nname = 'x'\nmodels = {{a = 'b'}}\nprice = {{ {} }}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\nprot = 1", "unknown setting server.prot; the nearest known one is server.port"),
        ("[servr]\nport = 1", "unknown setting servr; the nearest known one is server"),
        ("[server]\nport = '1'", "server.port: Expected `int`, got `str`"),
        ("[server]\nport = 65536", "server.port: Expected `int` <= 65535"),
        ("[server]\nheartbeat_s = 0", "server.heartbeat_s: Expected `float` > 0"),
        ("[engine]\nmax_rows = 0", "engine.max_rows: Expected `int` >= 1"),
        ("[engine]\ntarget_itl_ms = 9", "engine.target_itl_ms: Expected `float` >= 10"),
        ("[engine]\ntarget_itl_ms = 10001", "engine.target_itl_ms: Expected `float` <= 10000"),
        ("[engine]\nkv_gib = -1", "engine.kv_gib: Expected `float` >= 0"),
        ("[engine]\nkv_gib = inf", "engine.kv_gib: Expected `float` <= 65536"),
        ("[engine]\ndisk_gib = nan", "engine.disk_gib: Expected `float` >= 0"),
        ("[engine]\ndisk_daily_gib = -0.5", "engine.disk_daily_gib: Expected `float` >= 0"),
        ("[engine]\nprefix_cache = 1", "engine.prefix_cache: Expected `bool`, got `int`"),
        ("[lan]\nbonjour = 'avahi'", "lan.bonjour: Invalid enum value 'avahi'"),
        (f"[lan]\ninterfaces = '{'x' * 1001}'", "lan.interfaces: Expected `str` of length <= 1000"),
        ("[spill]\nenabled = true", "spill.enabled needs [[providers]]"),
        ("[spill]\nmin_intelligence = 'gpt-oss-20b'", "min_intelligence has no effect while"),
        ("[spill]\nttft_objective_s = 0", "spill.ttft_objective_s: Expected `float` > 0"),
        (
            "[spill]\nttft_objective_s = 121",
            "ttft_objective_s = 121 exceeds spill.max_wait_s = 120",
        ),
        ("[spill]\nmax_wait_s = 0.5", "spill.max_wait_s: Expected `float` >= 1"),
        ("[spill]\nmax_wait_s = 86401", "spill.max_wait_s: Expected `float` <= 86400"),
        ("[spill]\nbudget = 1", "unknown setting spill.budget; the nearest known one is spill."),
        ("[spill]\nmonthly_budget_usd = -1", "spill.monthly_budget_usd: Expected `float` >= 0"),
        ("[spill]\nmonthly_budget_usd = nan", "spill.monthly_budget_usd: Expected `float` >= 0"),
        ("[spill]\nmonthly_budget_usd = 1e7", "Expected `float` <= 1000000.0"),
        (PRICED.format("input_usd = 1"), "Object missing required field `output_usd`"),
        (PRICED.format("input_usd = 1, output_usd = -1"), "Expected `float` >= 0"),
        (PRICED.format("input_usd = 1, output_usd = 1, a = 1"), "unknown field `a`"),
        ("[[providers]]\nname = 'x'", "providers[0]: Object missing required field `models`"),
        ("[[providers]]\nname = 'X'", "Expected `str` matching regex"),
        ("[[providers]]\nname = 'x'\nmodels = {}", "Expected `object` of length >= 1"),
        ("[[providers]]\nbase = 'x'", "providers[0]: unknown setting base; the nearest known one"),
        ("[providers]\nname = 'x'", "providers must be a list of tables: write [[providers]]"),
        ("providers = [1]", "providers must be a list of tables: write [[providers]]"),
        (2 * "[[providers]]\nname = 'x'\nmodels = {a = 'b'}\n", "two [[providers]] are named x"),
        ("[aliases]\na = 1", "aliases.a: Expected `str`, got `int`"),
        ("server = 1", "server must be a table"),
        ("[server", "cannot read the configuration"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        load_config(environ={}, file=file)
    assert message in str(raised.value)
    assert str(file) in str(raised.value)


def test_how_long_a_request_may_wait_is_configured(tmp_path: Path) -> None:
    file = write(tmp_path, "[spill]\nenabled = false\nttft_objective_s = 5\nmax_wait_s = 5\n")
    spill = load_config(environ={}, file=file).spill
    assert (spill.ttft_objective_s, spill.max_wait_s) == (5.0, 5.0)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("VERGER_SERVER_PRT", "1", "the nearest known one is VERGER_SERVER_PORT"),
        ("VERGER_SERVER_PORT", "many", "VERGER_SERVER_PORT: server.port: Expected `int`"),
        ("VERGER_ENGINE_MAX_ROWS", "257", "Expected `int` <= 256"),
        ("VERGER_SPILL_ENABLED", "true", "VERGER_SPILL_ENABLED: spill.enabled needs"),
        ("VERGER_ENGINE_PREFIX_CACHE", "maybe", "engine.prefix_cache: Expected `bool`"),
    ],
)
def test_what_is_wrong_in_the_environment_is_named(name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(environ={name: text})
    assert message in str(raised.value)


def test_the_bounds_themselves_are_allowed(tmp_path: Path) -> None:
    for text in ("target_itl_ms = 10\nkv_gib = 0", "target_itl_ms = 10_000\nkv_gib = 0.5"):
        load_config(environ={}, file=write(tmp_path, f"[engine]\n{text}\n"))


@pytest.mark.parametrize(
    ("text", "expected"), [("true", True), ("false", False), ("1", True), ("0", False)]
)
def test_a_variable_can_switch_the_cache(text: str, expected: bool) -> None:
    config = load_config(environ={"VERGER_ENGINE_PREFIX_CACHE": text})
    assert config.engine.prefix_cache is expected


def test_variables_that_are_no_settings_are_left_alone() -> None:
    environ = {"VERGER_HOME": "/x", "VERGER_REQUIRE_ORACLE": "1", "VERGEROUS": "1"}
    assert load_config(environ=environ).server.port == 8374


def test_a_missing_file_is_an_error_only_when_it_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(environ={}, file=tmp_path / "absent.toml")


def provider_tables(count: int) -> str:
    return "".join(
        f"[[providers]]\nname = 'p{number}'\nmodels = {{m = 'maker/m'}}\n"
        for number in range(count)
    )


def test_providers_are_read_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = provider_tables(MAX_PROVIDERS) + "kind = 'groq'\nkey_file = 'secrets/groq'\n"
    config = load_config(environ={}, file=write(tmp_path, text))
    assert [provider.name for provider in config.providers] == [
        f"p{number}" for number in range(MAX_PROVIDERS)
    ]
    last = config.providers[-1]
    assert (last.kind, last.key_file, last.base_url) == ("groq", "secrets/groq", "")
    assert last.models == {"m": "maker/m"}
    assert config.settings["providers.p0"].origin == str(tmp_path / "config.toml")


def test_one_provider_too_many_is_an_error(tmp_path: Path) -> None:
    file = write(tmp_path, provider_tables(MAX_PROVIDERS + 1))
    with pytest.raises(ConfigError, match="more than 16"):
        load_config(environ={}, file=file)


def test_a_provider_has_a_bounded_number_of_models(tmp_path: Path) -> None:
    for count, is_allowed in ((MAX_PROVIDER_MODELS, True), (MAX_PROVIDER_MODELS + 1, False)):
        models = ", ".join(f"m{number} = 'x'" for number in range(count))
        file = write(tmp_path, f"[[providers]]\nname = 'p'\nmodels = {{{models}}}\n")
        if is_allowed:
            load_config(environ={}, file=file)
        else:
            with pytest.raises(ConfigError, match="length <= 64"):
                load_config(environ={}, file=file)
