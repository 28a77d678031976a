"""Who may import whom: the arrows of the README's layer diagram, read from the source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "server" / "verger"
SOURCES = sorted(PACKAGE.rglob("*.py"))

COMMON = {"errors", "config", "paths", "log"}
PURE = {"messages", "catalogue", "model_folder", "memory_fit", *COMMON}
MAY_IMPORT = {
    "errors": set[str](),
    "config": {"errors", "paths"},
    "paths": {"errors"},
    "log": {"errors"},
    "messages": COMMON,
    "timings": set(),
    "model_folder": COMMON,
    "memory_fit": set(),
    "catalogue": {"model_folder", "memory_fit", *COMMON},
    "formats": PURE,
    "api": {"formats", *PURE},
    "lan": COMMON,
    "connect": COMMON,
    "costs": PURE,
    "macos": COMMON,
    "gateway": {"api", "formats", "lan", "connect", "costs", *PURE},
    "bench": {"formats", "timings", *PURE},
    "cli": {"gateway", "bench", "api", "formats", "lan", "connect", "costs", "macos", *PURE},
    "engine": {"timings", *PURE},
}
"""Layer → the layers it may import besides itself; gateway and engine share only PURE."""

ONLY_IN = {
    "mlx": ["engine/device/"],
    "mlx_lm": ["engine/device/"],
    "llguidance": ["engine/device/"],
    "tokenizers": ["engine/fake.py", "formats/vocabulary.py"],
    "transformers": [],
    "sse_starlette": ["gateway/sse.py"],
    "starlette": ["gateway/"],
    "uvicorn": ["gateway/"],
    "httpx": ["gateway/backends/", "cli/"],
    "httpx2": ["cli/hub.py"],
    "huggingface_hub": ["cli/hub.py"],
    "filelock": ["cli/pull.py"],
    "truststore": ["cli/"],
    "zeroconf": ["lan/"],
    "ifaddr": ["lan/"],
    "typer": ["cli/"],
}
"""Library → where it may be imported; the others are free of it."""


def imports(source: Path) -> Iterator[str]:
    """The dotted names that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: write imports in full, beginning with verger"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(source: Path) -> str:
    return source.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_layers(source: Path) -> None:
    place = source.relative_to(PACKAGE).as_posix()
    for name in imports(source):
        library, _, rest = name.partition(".")
        if library == "verger":
            target = rest.split(".")[0]
            allowed = {layer(source), "__version__", *MAY_IMPORT.get(layer(source), ())}
            assert target in allowed, f"{place} must not import verger.{rest}"
        elif library in ONLY_IN:
            assert place.startswith(tuple(ONLY_IN[library])), f"{place} must not import {library}"


def test_only_config_and_paths_read_the_environment() -> None:
    readers = {path.name for path in SOURCES if {"os.environ", "os.getenv"} & reads(path)}
    assert readers == {"config.py", "paths.py"}


def reads(source: Path) -> set[str]:
    """Every `name.attribute` that a file mentions."""
    nodes = ast.walk(ast.parse(source.read_text(encoding="utf-8")))
    return {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}


def test_the_gateway_and_the_commands_run_without_the_engines_libraries() -> None:
    """In a process of its own: every module but the engine's, then a look at what came along."""
    outside = [path for path in SOURCES if layer(path) != "engine" and path.stem != "__main__"]
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print({'mlx', 'mlx_lm', 'llguidance', 'transformers', 'numpy'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", program, *map(module_name, outside)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "set()"


def module_name(source: Path) -> str:
    parts = source.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def test_what_runs_on_a_windows_laptop_imports_nothing_of_posix() -> None:
    posix = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"}
    for source in SOURCES:
        if layer(source) in ("cli", "connect", "lan", *COMMON):
            libraries = {name.partition(".")[0] for name in imports(source)}
            assert not libraries & posix, source
    client = [PACKAGE / "cli" / f"{name}.py" for name in CLIENT_MODULES]
    used = {name for source in client for name in reads(source) if name.startswith("os.")}
    assert used <= {"os.fdopen", "os.fsync", "os.name", "os.replace"}


CLIENT_MODULES = "connect discover env instances pins private_file session shell".split()
