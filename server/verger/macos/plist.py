"""A launchd job on paper: read strictly from a property list, and rendered from the template.

plistlib alone is no judge: it takes the last of two equal keys, any type anywhere, and 027 for 27.
`read_job` refuses those; what a job of ours may say is `plist_rules`. Pure. Keys and their types
are those of launchd.plist(5).
"""

import plistlib
import re
from collections.abc import Mapping
from typing import Any
from xml.parsers.expat import ExpatError

import msgspec
from msgspec import Struct

from verger.errors import PlistError

MAX_PLIST_BYTES = 64 * 1024


class ResourceLimits(Struct, frozen=True, forbid_unknown_fields=True, rename="pascal"):
    """The limits that launchd sets for a job."""

    core: int | None = None
    cpu: int | None = msgspec.field(default=None, name="CPU")
    data: int | None = None
    file_size: int | None = None
    memory_lock: int | None = None
    number_of_files: int | None = None
    number_of_processes: int | None = None
    resident_set_size: int | None = None
    stack: int | None = None


class Job(Struct, frozen=True, forbid_unknown_fields=True, rename="pascal", kw_only=True):
    """Every key that launchd knows, by its type; an unknown one is an error."""

    label: str
    disabled: bool | None = None
    user_name: str | None = None
    group_name: str | None = None
    inetd_compatibility: dict[str, bool] | None = msgspec.field(
        default=None, name="inetdCompatibility"
    )
    limit_load_to_hosts: list[str] | None = None
    limit_load_from_hosts: list[str] | None = None
    limit_load_to_session_type: str | list[str] | None = None
    limit_load_to_hardware: dict[str, list[str]] | None = None
    limit_load_from_hardware: dict[str, list[str]] | None = None
    program: str | None = None
    bundle_program: str | None = None
    program_arguments: list[str] | None = None
    enable_globbing: bool | None = None
    enable_transactions: bool | None = None
    enable_pressured_exit: bool | None = None
    on_demand: bool | None = None
    keep_alive: bool | dict[str, Any] | None = None
    run_at_load: bool | None = None
    root_directory: str | None = None
    working_directory: str | None = None
    environment_variables: dict[str, str] | None = None
    umask: int | None = None
    time_out: int | None = None
    exit_time_out: int | None = None
    throttle_interval: int | None = None
    init_groups: bool | None = None
    watch_paths: list[str] | None = None
    queue_directories: list[str] | None = None
    start_on_mount: bool | None = None
    start_interval: int | None = None
    start_calendar_interval: dict[str, int] | list[dict[str, int]] | None = None
    standard_in_path: str | None = None
    standard_out_path: str | None = None
    standard_error_path: str | None = None
    debug: bool | None = None
    wait_for_debugger: bool | None = None
    soft_resource_limits: ResourceLimits | None = None
    hard_resource_limits: ResourceLimits | None = None
    nice: int | None = None
    process_type: str | None = None
    abandon_process_group: bool | None = None
    low_priority_io: bool | None = msgspec.field(default=None, name="LowPriorityIO")
    low_priority_background_io: bool | None = msgspec.field(
        default=None, name="LowPriorityBackgroundIO"
    )
    materialize_dataless_files: bool | None = None
    launch_only_once: bool | None = None
    mach_services: dict[str, Any] | None = None
    sockets: dict[str, Any] | None = None
    launch_events: dict[str, Any] | None = None
    session_create: bool | None = None
    legacy_timers: bool | None = None
    associated_bundle_identifiers: str | list[str] | None = None


class _OnceOnly(dict[str, Any]):
    """A dictionary of a property list; plistlib itself would take the last of two equal keys."""

    def __setitem__(self, key: str, value: object) -> None:
        if key in self:
            raise PlistError(f"the key {key} stands there twice")
        super().__setitem__(key, value)


def read_job(raw: bytes) -> Job:
    """Parse an XML property list; raises PlistError with the first thing that is wrong."""
    if len(raw) > MAX_PLIST_BYTES:
        raise PlistError(f"it is longer than {MAX_PLIST_BYTES} bytes")
    _check_text(raw)
    try:
        document = plistlib.loads(raw, fmt=plistlib.FMT_XML, dict_type=_OnceOnly)
    except PlistError:
        raise
    except (ExpatError, ValueError, TypeError, AttributeError) as error:
        raise PlistError(f"it is not an XML property list: {error}") from None
    try:
        return msgspec.convert(document, Job)
    except msgspec.ValidationError as error:
        raise PlistError(f"launchd does not know this: {error}") from None


def render_job(template: bytes, values: Mapping[str, str]) -> bytes:
    """The template with each @NAME@ replaced, as XML; a name without a value is a KeyError."""
    return plistlib.dumps(_filled(plistlib.loads(template), values), sort_keys=False)


def _check_text(raw: bytes) -> None:
    """What is lost once it is parsed."""
    for comment in re.findall(rb"<!--(.*?)-->", raw, re.S):
        if b"--" in comment:
            raise PlistError("a comment holds --, which is not XML: launchd would not load it")
    if number := re.search(rb"<integer>\s*[+-]?(0\d+)\s*</integer>", raw):
        raise PlistError(
            f"the integer {number[1].decode()} begins with 0: it is read as decimal, not octal"
        )


def _filled(value: Any, values: Mapping[str, str]) -> Any:
    """Filled in after parsing, so that no value can become markup."""
    if isinstance(value, str):
        return re.sub(r"@([A-Z]+)@", lambda name: values[name[1]], value)
    if isinstance(value, list):
        return [_filled(item, values) for item in value]
    if isinstance(value, dict):
        return {key: _filled(item, values) for key, item in value.items()}
    return value
