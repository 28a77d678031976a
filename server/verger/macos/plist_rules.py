"""What a launchd job of ours must say, beyond what launchd itself would accept. Pure.

Used before a plist is written, and to judge one that somebody may have edited. Each rule is a
function that yields a sentence per violation; why each exists stands in launchd/README.md.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

from verger.errors import PlistError
from verger.macos.plist import Job, read_job

DRAIN_S = 30
"""How long the gateway finishes running answers after SIGTERM; a test keeps it equal to its own."""
EXIT_MARGIN_S = 5
MIN_THROTTLE_S = 10
MIN_FILES = 1_280
"""What the gateway's connections and everything else may need."""
MAX_UMASK = 0o777

_SECRET_NAME = re.compile(r"key|token|secret|passw|credential|auth", re.I)
_SECRET_VALUE = re.compile(r"\b(?:vg|sk|hf|ghp|xox[bp])[-_][A-Za-z0-9_-]{8,}|\b[A-Fa-f0-9]{40,}\b")
_FORBIDDEN: dict[str, Callable[[Job], object]] = {
    "Nice": lambda job: job.nice,
    "LowPriorityIO": lambda job: job.low_priority_io,
    "LowPriorityBackgroundIO": lambda job: job.low_priority_background_io,
    "AbandonProcessGroup": lambda job: job.abandon_process_group,
    "Sockets": lambda job: job.sockets,
    "Disabled": lambda job: job.disabled,
    "EnableGlobbing": lambda job: job.enable_globbing,
    "LimitLoadToSessionType": lambda job: job.limit_load_to_session_type,
}
"""Keys that slow the engine, outlive the gateway, announce it too early or keep it from a boot."""


def problems(raw: bytes, file_name: str) -> list[str]:
    """All that is wrong with the plist, in plain words; empty where it may be loaded."""
    try:
        job = read_job(raw)
    except PlistError as error:
        return [str(error)]
    found = list(_label(job, file_name))
    for rule in _RULES:
        found += rule(job)
    return found


def _label(job: Job, file_name: str) -> Iterator[str]:
    if f"{job.label}.plist" != file_name:
        yield f"Label is {job.label}: the file must then be {job.label}.plist, not {file_name}"


def _program(job: Job) -> Iterator[str]:
    if not job.program_arguments:
        yield "ProgramArguments is missing"
    elif not job.program_arguments[0].startswith("/"):
        yield f"ProgramArguments: {job.program_arguments[0]} is not an absolute path"


def _paths(job: Job) -> Iterator[str]:
    environment = job.environment_variables or {}
    places = {
        "Program": job.program,
        "WorkingDirectory": job.working_directory,
        "StandardInPath": job.standard_in_path,
        "StandardOutPath": job.standard_out_path,
        "StandardErrorPath": job.standard_error_path,
        "HOME": environment.get("HOME"),
        "VERGER_HOME": environment.get("VERGER_HOME"),
    }
    places |= {f"PATH, part {n}": part for n, part in enumerate(_path_parts(environment))}
    for name, path in places.items():
        if path is not None and not _is_plain(path):
            yield f"{name}: {path!r} is not an absolute path without . and .."


def _path_parts(environment: dict[str, str]) -> list[str]:
    return environment["PATH"].split(":") if environment.get("PATH") else []


def _is_plain(path: str) -> bool:
    # What launchd does not expand is for its own rule.
    if path.startswith(("~", "$")):
        return True
    return path.startswith("/") and not {".", ".."} & set(PurePosixPath(path).parts)


def _expansions(job: Job) -> Iterator[str]:
    for name, text in _texts(job):
        if "~" in text or "$" in text:
            yield f"{name}: launchd expands neither ~ nor $: {text!r}"


def _environment(job: Job) -> Iterator[str]:
    for name in ("HOME", "PATH"):
        if not (job.environment_variables or {}).get(name):
            yield f"EnvironmentVariables: {name} is not set, and launchd gives none"


def _secrets(job: Job) -> Iterator[str]:
    for name, text in (job.environment_variables or {}).items():
        if _SECRET_NAME.search(name) or _SECRET_VALUE.search(text):
            yield f"EnvironmentVariables: {name} looks like a secret, and launchctl print shows it"
    arguments = job.program_arguments or []
    for position, text in enumerate(arguments):
        if _SECRET_VALUE.search(text):
            yield f"ProgramArguments: number {position} looks like a secret, and ps shows it"


def _process_type(job: Job) -> Iterator[str]:
    if job.process_type != "Interactive":
        yield f"ProcessType is {job.process_type}: anything but Interactive is throttled"


def _umask(job: Job) -> Iterator[str]:
    if job.umask is None:
        yield "Umask is not set"
    elif not 0 <= job.umask <= MAX_UMASK or job.umask & 0o027 != 0o027:
        yield f"Umask is {job.umask}, octal {job.umask:o}: write decimal 23, which is octal 27"


def _times(job: Job) -> Iterator[str]:
    least_s = DRAIN_S + EXIT_MARGIN_S
    if job.exit_time_out is None or job.exit_time_out < least_s:
        yield f"ExitTimeOut is {job.exit_time_out}: answers drain for {DRAIN_S} s; use {least_s}"
    if job.throttle_interval is None or job.throttle_interval < MIN_THROTTLE_S:
        yield f"ThrottleInterval is {job.throttle_interval}: use {MIN_THROTTLE_S} or more"


def _account(job: Job) -> Iterator[str]:
    if job.user_name in (None, "root"):
        yield "UserName: the service must not run as root"
    if job.group_name in (None, "wheel", "admin"):
        yield f"GroupName is {job.group_name}: use the service's own group"


def _presence(job: Job) -> Iterator[str]:
    if job.keep_alive is not True:
        yield "KeepAlive is not true: the service would not come back"
    if job.run_at_load is not True:
        yield "RunAtLoad is not true: the service would not start at boot"
    if job.working_directory is None:
        yield "WorkingDirectory is not set"
    if job.standard_error_path is None:
        yield "StandardErrorPath is not set: why it crashed would be lost"


def _files(job: Job) -> Iterator[str]:
    limits = job.soft_resource_limits
    files = None if limits is None else limits.number_of_files
    if files is None or files < MIN_FILES:
        yield f"SoftResourceLimits: NumberOfFiles is {files}: use {MIN_FILES} or more, such as 8192"


def _absent(job: Job) -> Iterator[str]:
    for key, value_of in _FORBIDDEN.items():
        if value_of(job) is not None:
            yield f"{key} must be absent"


def _texts(job: Job) -> Iterator[tuple[str, str]]:
    """Every text that launchd hands on, with the key it stands under."""
    for text in job.program_arguments or []:
        yield "ProgramArguments", text
    for name, text in (job.environment_variables or {}).items():
        yield f"EnvironmentVariables: {name}", text
    paths = {
        "Program": job.program,
        "WorkingDirectory": job.working_directory,
        "StandardInPath": job.standard_in_path,
        "StandardOutPath": job.standard_out_path,
        "StandardErrorPath": job.standard_error_path,
    }
    yield from ((key, text) for key, text in paths.items() if text is not None)


_RULES: tuple[Callable[[Job], Iterator[str]], ...] = (
    _program,
    _paths,
    _expansions,
    _environment,
    _secrets,
    _process_type,
    _umask,
    _times,
    _account,
    _presence,
    _files,
    _absent,
)
