"""The README names what there is, and nothing else: each of its tables against the code."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import typer.main
from starlette.routing import Route

from tests.fakes import byte_tokenizer
from verger import errors, log, paths
from verger.api import chat_body, status
from verger.api.json_body import MAX_JSON_DEPTH
from verger.cli.download import MAX_FRUITLESS
from verger.cli.main import app as cli
from verger.cli.pull import SPARE_BYTES
from verger.config import (
    RELOADABLE,
    CostsConfig,
    EngineConfig,
    LanConfig,
    LogConfig,
    ServerConfig,
    SpillConfig,
)
from verger.connect.entries import load_clients
from verger.engine.__main__ import CAUTIOUS_CHUNK_TOKENS, CAUTIOUS_DIVISOR
from verger.formats.dates import PinnedDates
from verger.formats.vocabulary import Vocabulary
from verger.gateway import acceptor, breaker, connection, failover, receive, routing, safe_mode
from verger.gateway.advertising import CHECK_S
from verger.gateway.app import create_app
from verger.gateway.authentication import MAX_WRONG_KEYS
from verger.gateway.backends.cloud_request import Deadlines
from verger.gateway.backends.upstream_body import MAX_ANSWER_TOKENS
from verger.gateway.endpoints.chat import HEAD_START_S
from verger.gateway.engine_client import EngineClient
from verger.gateway.fairness import WEIGHTS
from verger.gateway.keys import MAX_KEYS
from verger.gateway.named import NAMED_MODEL
from verger.gateway.providers import ANY_PROVIDER, load_kinds
from verger.gateway.run_record import StartReason
from verger.gateway.service import Service
from verger.gateway.settings import ServerSettings
from verger.gateway.submit_queue import BATCH_TURN_S, LOOK_AHEAD_ROWS, MAX_QUEUED
from verger.gateway.turns import MAX_ANSWER_S
from verger.lan import records
from verger.macos.doctor import CHECKS
from verger.macos.power_checks import RECENT_PANIC
from verger.macos.service_checks import LOW_DISK_BYTES
from verger.messages import BATCH, PROTOCOL_VERSION, Hello

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "server" / "verger"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROSE = " ".join(README.split())
"""However its lines are broken."""
STRUCTS: dict[str, type[msgspec.Struct]] = {
    "server": ServerConfig,
    "engine": EngineConfig,
    "lan": LanConfig,
    "costs": CostsConfig,
    "spill": SpillConfig,
    "log": LogConfig,
}
STATUS_STRUCTS: dict[str, type[msgspec.Struct]] = {
    "lan": status.Lan,
    "rows": status.Rows,
    "tokens": status.TokenCounts,
    "cache": status.Cache,
    "cache.disk": status.Disk,
    "prefill": status.Prefill,
    "keys": status.KeyActivity,
    "admission": status.Admission,
    "memory": status.Memory,
}
REMARK_COLUMN = 39
"""Where the remarks of the annotated tree begin."""


def rows_of(*heading: str) -> list[list[str]]:
    """The cells of the README's only table with this heading."""
    (table,) = re.findall(
        rf"^\| {re.escape(' | '.join(heading))} .*\n\|[-|]+\n((?:\|.*\n)+)", README, re.M
    )
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def quoted(cell: str) -> list[str]:
    """What stands between backticks."""
    return re.findall(r"`([^`]+)`", cell)


def test_every_setting_stands_in_the_readme_with_its_default() -> None:
    settings = {
        (f"[{section}] {field.name}", f"VERGER_{section}_{field.name}".upper(), field.default)
        for section, struct in STRUCTS.items()
        for field in msgspec.structs.fields(struct)
    }
    rows = rows_of("`config.toml`")
    written = {
        (*quoted(key), *quoted(variable), json.loads(*quoted(default)))
        for key, variable, _, default, _ in rows
        if variable
    }
    assert written == settings
    flags = {flag for row in rows for flag in quoted(row[2])}
    assert flags <= set(_commands()["verger serve"])


def test_the_bounds_of_the_log_are_those_of_the_code() -> None:
    assert f"({log.FILE_MODE:04o})" in README
    assert f"more than {log.MAX_CRASH_BYTES >> 20} MiB of it is cut" in README
    assert f"the last {log.KEPT_CRASH_BYTES >> 10} KiB" in README


def test_the_times_of_safe_mode_are_those_of_the_code() -> None:
    (section,) = re.findall(r"^### Safe mode\n(.*?)^## ", README, re.M | re.S)
    text = " ".join(section.split())
    assert safe_mode.CRASHES == 3
    assert f"three times within {safe_mode.WINDOW_S / 60:g} minutes" in text
    first, second, third, last = (seconds / 60 for seconds in safe_mode.PROBES_S)
    assert f"after {first:g} minutes, then after {second:g}, {third:g}, and each {last:g};" in text
    assert f"ready for {safe_mode.HEALTHY_S / 60:g} minutes" in text
    assert f"1/{CAUTIOUS_DIVISOR} of the memory for KV" in text
    assert f"chunks of at most {CAUTIOUS_CHUNK_TOKENS} tokens" in text


def test_every_reason_for_a_start_stands_in_the_readme() -> None:
    (section,) = re.findall(r"^### The log\n(.*?)^## ", README, re.M | re.S)
    assert {reason.value for reason in StartReason} <= set(quoted(section))


def test_every_variable_of_the_readme_is_read() -> None:
    source = "".join(path.read_text() for path in (PACKAGE / "paths.py", PACKAGE / "config.py"))
    settings = {name for row in rows_of("`config.toml`") for name in quoted(row[1])}
    for name in set(re.findall(r"VERGER_[A-Z_]*[A-Z]", README)) - settings:
        assert f'"{name}"' in source


def test_every_command_and_flag_stands_in_the_readme() -> None:
    rows = rows_of("command", "flags")
    written = {quoted(command)[0]: sorted(quoted(flags)) for command, flags, _ in rows}
    assert written == {name: sorted(flags) for name, flags in _commands().items()}


def test_every_flag_of_a_key_is_explained_in_the_readme() -> None:
    flags = [flag for cell, _ in rows_of("flag of `keys add`") for flag in quoted(cell)]
    explained = {flag.split()[0] for flag in flags}
    assert explained | {"--json"} == set(_commands()["verger keys add"])


def test_every_kind_of_provider_stands_in_the_readme() -> None:
    kinds = {
        (
            name,
            "its own" if kind.base_url else "yours",
            "needed" if kind.needs_key else "if it asks",
            kind.data_policy,
        )
        for name, kind in load_kinds(paths.providers_dir()).items()
    }
    assert {(quoted(kind)[0], *rest) for kind, *rest in rows_of("kind", "base URL")} == kinds


def test_the_bounds_of_the_cloud_are_those_of_the_code() -> None:
    (section,) = re.findall(r"^## Cloud providers\n(.*?)^## ", README, re.M | re.S)
    text = " ".join(section.split())
    assert f"within {failover.BUDGET_S:.0f} s for all of them together" in text
    assert f"for no more than {HEAD_START_S:.0f} s" in text
    assert f"says nothing for {Deadlines().idle_s:.0f} s" in text
    assert breaker.MAX_FAILURES_IN_ROW == 3
    assert "one that fails three times in a row" in text
    assert f"`{ANY_PROVIDER}/MODEL`" in text
    assert f"is {MAX_ANSWER_TOKENS:,} where a request leaves it out" in text


def test_every_client_stands_in_the_readme() -> None:
    (sentence,) = re.findall(r"^`verger connect` knows (.*?)\.", README, re.M | re.S)
    assert quoted(sentence) == [client.name for client in load_clients()]


def test_what_sighup_takes_over_stands_in_the_readme() -> None:
    (written,) = re.findall(
        r"SIGHUP takes over the providers, `\[spill\]`, the aliases, (.*?)\. Other", README, re.S
    )
    assert {f"server.{name}" for name in quoted(written)} == RELOADABLE


def test_every_exit_code_stands_in_the_readme() -> None:
    ours = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    written = {int(code) for code, _ in rows_of("exit code")}
    assert written == {0, 1} | ours


def test_every_check_of_the_doctor_stands_in_the_readme() -> None:
    written = [name for head, _ in rows_of("check") for name in quoted(head)]
    ours = ["configuration", "engine", "model", "providers"]
    assert written[:4] == ours
    assert sorted(written[4:]) == sorted(CHECKS)
    assert f"within {RECENT_PANIC.days} days" in README
    assert f"{LOW_DISK_BYTES // 10**9} GB free" in README
    assert f"with {SPARE_BYTES // 10**9} GB to spare" in README
    assert MAX_FRUITLESS == 5
    assert "broke, five times without progress" in README


def test_every_route_stands_in_the_readme(tmp_path: Path) -> None:
    routes = {
        f"{method} {re.sub(':path', '', route.path)}"
        for route in create_app(_service(tmp_path)).routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert {name for route, _ in rows_of("route") for name in quoted(route)} == routes


def test_every_figure_of_the_status_stands_in_the_readme() -> None:
    rows = rows_of("figure of the status")
    written = {name for head, _ in rows for name in quoted(head)}
    assert written == {"cache.disk", *status.Status.__struct_fields__}
    figures = {quoted(head)[0]: set(quoted(text)) for head, text in rows}
    for head, struct in STATUS_STRUCTS.items():
        assert figures[head] == set(struct.__struct_fields__) - {"disk"}, head


def test_the_bounds_of_the_queue_are_those_of_the_code() -> None:
    assert f"up to {MAX_QUEUED} " in PROSE
    assert LOOK_AHEAD_ROWS == 2
    assert "and two more are handed to the engine" in README
    what = {name: text for code, _, text in rows_of("code", "status") for name in quoted(code)}
    assert f"once in {BATCH_TURN_S:g} seconds" in README
    assert WEIGHTS[BATCH] == 4
    assert "counts a quarter" in README
    assert what["overloaded"].startswith(f"{MAX_QUEUED} answers wait")


def test_every_reason_for_a_route_stands_in_the_readme() -> None:
    what = {name: text for head, text in rows_of("response header") for name in quoted(head)}
    reasons = {reason.value for reason in routing.Reason}
    assert set(quoted(what["x-verger-reason"])) == reasons | {NAMED_MODEL}


def test_what_is_advertised_is_what_the_readme_says() -> None:
    advert = records.Advert("n", 1, "i", ("a", "b"), False, False, "v")
    fields = records.encode_txt(advert)
    written = {name for field, _ in rows_of("TXT field") for name in quoted(field)}
    assert written == {name for name in fields if name != "m1"} | {"models"}
    assert f"at most {records.MAX_TXT_BYTES} bytes" in README
    assert f"`m{records.MAX_LISTED_MODELS - 1}`" in README
    assert CHECK_S == 10
    assert "every ten seconds it is tried again" in PROSE


def test_the_bounds_of_keys_are_those_of_the_code() -> None:
    what = {name: text for code, _, text in rows_of("code", "status") for name in quoted(code)}
    assert f"{MAX_WRONG_KEYS} wrong keys" in what["rate_limited"]
    assert f"there are at most {MAX_KEYS:,} of those" in README


def test_the_bounds_of_clients_are_those_of_the_code() -> None:
    written = {bound: f"{limit} | {beyond}" for bound, limit, beyond in rows_of("bound")}
    bounds: dict[str, list[float]] = {
        "connections": [acceptor.MAX_CONNECTIONS, acceptor.MAX_CLIENT_CONNECTIONS],
        "a TLS handshake": [acceptor.HANDSHAKE_TIMEOUT_S],
        "a request's head": [
            connection.HEAD_TIMEOUT_S,
            connection.MAX_URL_BYTES / 2**10,
            connection.MAX_HEADERS,
            connection.MAX_HEADER_BYTES / 2**10,
        ],
        "a request's body": [
            receive.BODY_TIMEOUT_S,
            receive.MAX_BODY_BYTES / 2**20,
            connection.MESSAGE_TIMEOUT_S,
        ],
        "what is in it": [
            MAX_JSON_DEPTH,
            chat_body.MAX_MESSAGES,
            chat_body.MAX_PARTS,
            chat_body.MAX_TOOLS,
            chat_body.MAX_TOOL_CALLS,
        ],
        "answers that wait": [MAX_QUEUED],
        "an answer": [MAX_ANSWER_S / 3600],
        "a client that does not read": [connection.SEND_TIMEOUT_S],
        "an idle connection": [connection.KEEP_ALIVE_S],
        "a connection that was closed and stays": [connection.CLOSE_S],
    }
    for bound, limits in bounds.items():
        for limit in limits:
            assert re.search(rf"\b{limit:,g}\b", written[bound]), bound
    what = {name: text for code, _, text in rows_of("code", "status") for name in quoted(code)}
    assert what["url_too_long"] == f"more than {connection.MAX_URL_BYTES >> 10} KiB"
    assert what["headers_too_large"].startswith(
        f"more than {connection.MAX_HEADER_BYTES >> 10} KiB, or more than {connection.MAX_HEADERS} "
    )


def test_every_header_stands_in_the_readme() -> None:
    sources = "".join(path.read_text() for path in (PACKAGE / "gateway").rglob("*.py"))
    headers = set(re.findall(r"[\"'](x-[a-z-]+|retry-after)[\"']", sources))
    rows = rows_of("response header") + rows_of("request header")
    written = {name for header, _ in rows for name in quoted(header)}
    assert written == headers | {"authorization"}


def test_every_error_code_stands_in_the_readme_with_its_status() -> None:
    codes = {(error.code, error.status) for error in _leaves(errors.ReplyError)}
    written = {(*quoted(code), int(status)) for code, status, _ in rows_of("code", "status")}
    assert written == codes


def test_every_parameter_stands_in_the_readme_with_what_becomes_of_it() -> None:
    fates = dict.fromkeys(chat_body.HONOURED, "honoured")
    fates |= dict.fromkeys(chat_body.HARMLESS, "harmless")
    fates |= {name: _fate(values) for name, values in chat_body.LIMITED.items()}
    written = [(name, fate) for names, fate, _ in rows_of("parameter") for name in quoted(names)]
    assert sorted(written) == sorted(fates.items())


def test_the_bounds_of_the_parameters_are_those_of_the_code() -> None:
    what = {name: text for names, _, text in rows_of("parameter") for name in quoted(names)}
    assert what["n"].startswith(f"1 to {chat_body.MAX_CHOICES},")
    assert f"{chat_body.MAX_LOGIT_BIASES:,}" in what["logit_bias"]


def test_the_paths_of_the_readme_exist() -> None:
    """Those of a request's life, written as `folder/file.py`, and those of the tree."""
    written = {name for name in re.findall(r"`([a-z_/]+\.py)`", README) if "/" in name}
    for name in written:
        assert (ROOT / name).is_file() or (PACKAGE / name).is_file(), name
    for path in _places_of_the_tree():
        assert path.exists() or any(path.parent.glob(f"{path.name}*.py")), path


def _commands() -> dict[str, list[str]]:
    """Command → its flags, except --help; without groups that have none of their own."""
    commands: dict[str, list[str]] = {}
    unseen = [("verger", typer.main.get_command(cli))]
    while unseen:
        name, command = unseen.pop()
        options = [p for p in command.params if p.param_type_name == "option"]
        children = getattr(command, "commands", {})
        if options or not children:
            commands[name] = [flag for option in options for flag in option.opts]
        unseen += [(f"{name} {child}", children[child]) for child in children]
    return commands


def _service(folder: Path) -> Service:
    settings = ServerSettings("m", folder, context_tokens=1)
    engine = EngineClient(["never started"], Hello(PROTOCOL_VERSION, 0))
    vocabulary = Vocabulary.from_file_bytes(byte_tokenizer().to_str().encode())
    return Service(settings, vocabulary, engine, PinnedDates())


def _leaves(error: type[errors.ReplyError]) -> Iterator[type[errors.ReplyError]]:
    """The errors that are raised; the others only group them."""
    children = error.__subclasses__()
    yield from itertools.chain.from_iterable(map(_leaves, children)) if children else [error]


def _fate(values: tuple[object, ...]) -> str:
    written = ", ".join(f"`{msgspec.json.encode(value).decode()}`" for value in values)
    return f"only {written}" if values else "refused"


def _places_of_the_tree() -> Iterator[Path]:
    """Two spaces of indentation are one folder; names after a folder's stand in it."""
    (tree,) = re.findall(r"## The tree\n\n```\n(.*?)```", README, re.S)
    parents = [ROOT]
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        names = line[:REMARK_COLUMN].split()
        parent = parents[depth]
        if names[0].endswith("/"):
            parent /= names.pop(0)
            yield parent
            parents[depth + 1 :] = [parent]
        yield from (parent / name for name in names)
