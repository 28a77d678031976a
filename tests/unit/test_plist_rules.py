"""The plist of the service: rendered as the golden file says, and each rule broken by its own."""

import plistlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from verger import paths
from verger.errors import PlistError
from verger.gateway.acceptor import MAX_CONNECTIONS
from verger.gateway.connection import CLOSE_S
from verger.gateway.server import SPARE_FILES
from verger.gateway.settings import ServerSettings
from verger.macos import plist_rules
from verger.macos.layout import LABEL, TEMPLATE_NAME, Layout
from verger.macos.plist import MAX_PLIST_BYTES, read_job, render_job
from verger.macos.plist_rules import problems

GOLDEN = Path(__file__).parents[1] / "golden" / TEMPLATE_NAME
NAME = f"{LABEL}.plist"
SECRET = "vg-1f0c9a3e-G5rQ43charactersOfAKey"


def template() -> bytes:
    return (paths.data_dir() / "launchd" / TEMPLATE_NAME).read_bytes()


def rendered() -> bytes:
    return render_job(template(), Layout().job_values())


def changed(**keys: Any) -> bytes:
    """The plist with other values; None takes a key away."""
    job = plistlib.loads(rendered()) | keys
    return plistlib.dumps({key: value for key, value in job.items() if value is not None})


def variables(**changes: str | None) -> dict[str, str]:
    found = {**plistlib.loads(rendered())["EnvironmentVariables"], **changes}
    return {name: text for name, text in found.items() if text is not None}


def test_the_template_becomes_the_golden_file() -> None:
    assert rendered() == GOLDEN.read_bytes()


def test_the_golden_file_breaks_no_rule() -> None:
    assert problems(GOLDEN.read_bytes(), GOLDEN.name) == []


def test_what_is_filled_in_cannot_become_markup() -> None:
    values = {**Layout().job_values(), "HOME": "/a</string><key>Nice</key>@CURRENT@"}
    assert plistlib.loads(render_job(template(), values))["WorkingDirectory"] == values["HOME"]


def test_a_name_without_a_value_is_a_defect() -> None:
    with pytest.raises(KeyError):
        render_job(template(), {})


def with_text(old: str, new: str) -> bytes:
    text = rendered().decode()
    assert old in text
    return text.replace(old, new, 1).encode()


NOT_A_JOB: dict[str, Callable[[], bytes]] = {
    "Label stands there twice": lambda: with_text("<key>Umask</key>", "<key>Label</key>"),
    "HOME stands there twice": lambda: with_text("<key>PATH</key>", "<key>HOME</key>"),
    "a comment holds --": lambda: with_text("<dict>", "<dict><!-- one -- two -->"),
    "the integer 027 begins with 0": lambda: with_text(">23<", ">027<"),
    "not an XML property list": lambda: b"Label = verger",
    "is not an XML": lambda: rendered()[:-30],
    f"longer than {MAX_PLIST_BYTES}": lambda: rendered() + b" " * MAX_PLIST_BYTES,
    "unknown field `UserNam`": lambda: changed(UserNam="_verger"),
    "unknown field `NumberOfFile`": lambda: changed(SoftResourceLimits={"NumberOfFile": 1}),
    "`$.ProgramArguments`": lambda: changed(ProgramArguments="/usr/bin/true"),
    "got `str` - at `$.KeepAlive`": lambda: changed(KeepAlive="true"),
    "got `str` - at `$.Umask`": lambda: changed(Umask="027"),
    "got `bool` - at `$.ExitTimeOut`": lambda: changed(ExitTimeOut=True),
    "at `$.EnvironmentVariables[...]`": lambda: changed(EnvironmentVariables={"HOME": 1}),
    "missing required field `Label`": lambda: changed(Label=None),
}


@pytest.mark.parametrize("problem", NOT_A_JOB)
def test_what_launchd_would_not_take_is_one_problem(problem: str) -> None:
    (found,) = problems(NOT_A_JOB[problem](), NAME)
    assert problem in found


def test_an_overlong_plist_is_judged_at_its_bound() -> None:
    raw = rendered()
    assert read_job(raw + b" " * (MAX_PLIST_BYTES - len(raw))).label == LABEL
    with pytest.raises(PlistError):
        read_job(raw + b" " * (MAX_PLIST_BYTES - len(raw) + 1))


PYTHON = "/opt/python"
BROKEN: list[tuple[str, dict[str, Any]]] = [
    ("Label is com.other", {"Label": "com.other"}),
    ("ProgramArguments is missing", {"ProgramArguments": None}),
    ("ProgramArguments is missing", {"ProgramArguments": []}),
    ("python is not an absolute path", {"ProgramArguments": ["python"]}),
    ("WorkingDirectory: 'home'", {"WorkingDirectory": "home"}),
    ("StandardErrorPath: '/a/../b'", {"StandardErrorPath": "/a/../b"}),
    ("StandardOutPath: 'out.log'", {"StandardOutPath": "out.log"}),
    ("HOME: 'home'", {"EnvironmentVariables": variables(HOME="home")}),
    ("PATH, part 1: 'bin'", {"EnvironmentVariables": variables(PATH="/usr/bin:bin")}),
    ("PATH, part 1: ''", {"EnvironmentVariables": variables(PATH="/usr/bin:")}),
    ("expands neither", {"WorkingDirectory": "~/verger"}),
    ("expands neither", {"ProgramArguments": [PYTHON, "$HOME/verger"]}),
    ("expands neither", {"EnvironmentVariables": variables(HOME="$HOME")}),
    ("HOME is not set", {"EnvironmentVariables": variables(HOME=None)}),
    ("PATH is not set", {"EnvironmentVariables": variables(PATH=None)}),
    ("HF_TOKEN looks like", {"EnvironmentVariables": variables(HF_TOKEN="x")}),
    ("NOTE looks like", {"EnvironmentVariables": variables(NOTE=f"use {SECRET}")}),
    ("number 1 looks like", {"ProgramArguments": [PYTHON, f"--key={SECRET}"]}),
    ("ProcessType is None", {"ProcessType": None}),
    ("ProcessType is Background", {"ProcessType": "Background"}),
    ("Umask is not set", {"Umask": None}),
    ("Umask is 27, octal 33", {"Umask": 27}),
    ("Umask is 18, octal 22", {"Umask": 18}),
    ("ExitTimeOut is 34", {"ExitTimeOut": 34}),
    ("ExitTimeOut is None", {"ExitTimeOut": None}),
    ("ThrottleInterval is 9", {"ThrottleInterval": 9}),
    ("ThrottleInterval is None", {"ThrottleInterval": None}),
    ("must not run as root", {"UserName": "root"}),
    ("must not run as root", {"UserName": None}),
    ("GroupName is wheel", {"GroupName": "wheel"}),
    ("GroupName is None", {"GroupName": None}),
    ("KeepAlive is not true", {"KeepAlive": {"SuccessfulExit": False}}),
    ("RunAtLoad is not true", {"RunAtLoad": False}),
    ("WorkingDirectory is not set", {"WorkingDirectory": None}),
    ("StandardErrorPath is not set", {"StandardErrorPath": None}),
    ("NumberOfFiles is None", {"SoftResourceLimits": None}),
    ("NumberOfFiles is 1279", {"SoftResourceLimits": {"NumberOfFiles": 1279}}),
    ("Nice must be absent", {"Nice": 0}),
    ("LowPriorityIO must be absent", {"LowPriorityIO": True}),
    ("LowPriorityBackgroundIO must be", {"LowPriorityBackgroundIO": True}),
    ("AbandonProcessGroup must be", {"AbandonProcessGroup": False}),
    ("Sockets must be absent", {"Sockets": {"Listeners": {"SockServiceName": "8374"}}}),
    ("Disabled must be absent", {"Disabled": True}),
    ("EnableGlobbing must be absent", {"EnableGlobbing": True}),
    ("LimitLoadToSessionType must be", {"LimitLoadToSessionType": "Aqua"}),
]


@pytest.mark.parametrize(("problem", "keys"), BROKEN)
def test_a_plist_that_breaks_one_rule_has_that_one_problem(
    problem: str, keys: dict[str, Any]
) -> None:
    (found,) = problems(changed(**keys), NAME)
    assert problem in found


@pytest.mark.parametrize(
    "keys", [{"ExitTimeOut": 35}, {"SoftResourceLimits": {"NumberOfFiles": 1280}}, {"Umask": 63}]
)
def test_what_is_just_enough_breaks_no_rule(keys: dict[str, Any]) -> None:
    assert problems(changed(**keys), NAME) == []


def test_all_problems_are_told_at_once() -> None:
    assert len(problems(changed(Nice=5, Umask=None, UserName="root"), "other.plist")) == 4


def test_a_secret_is_not_repeated() -> None:
    arguments = [PYTHON, f"--key={SECRET}"]
    told = problems(changed(ProgramArguments=arguments), NAME)
    told += problems(changed(EnvironmentVariables=variables(NOTE=SECRET)), NAME)
    assert len(told) == 2
    assert SECRET[12:] not in "".join(told)


def test_the_rules_know_the_gateways_own_bounds() -> None:
    default = {name: ServerSettings.__dataclass_fields__[name].default for name in ("drain_s",)}
    assert plist_rules.DRAIN_S == default["drain_s"]
    assert plist_rules.EXIT_MARGIN_S == CLOSE_S
    assert plist_rules.MIN_FILES == MAX_CONNECTIONS + SPARE_FILES
