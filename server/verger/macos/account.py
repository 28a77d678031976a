"""The account that the service runs under: which, how it is asked for, how it is made. Pure.

dscl, not sysadminctl: that one gives an account a home in /Users, a place in the group staff and,
if it can, a secure token. This one has no password, no shell, is not shown at the login window, and
its ids are 501 or more, where accounts are known to reach the GPU (below 501 nobody has tried);
from 701 on, so that people's accounts, which take the lowest free one, stay together.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from verger.errors import InstallError
from verger.macos.layout import GROUP, USER, Layout
from verger.macos.steps import Run, Step

DSCL = ("/usr/bin/dscl", ".")
USER_RECORD, GROUP_RECORD = f"/Users/{USER}", f"/Groups/{GROUP}"
MIN_ID = 501
FIRST_ID, LAST_ID = 701, 799

READ_USER = (*DSCL, "-read", USER_RECORD)
READ_GROUP = (*DSCL, "-read", GROUP_RECORD)
LIST_USER_IDS = (*DSCL, "-list", "/Users", "UniqueID")
LIST_GROUP_IDS = (*DSCL, "-list", "/Groups", "PrimaryGroupID")


@dataclass(frozen=True, slots=True)
class AccountFacts:
    """What the directory says; attributes are empty where there is no such record."""

    user: Mapping[str, str]
    group: Mapping[str, str]
    used_ids: frozenset[int] = frozenset()


def parse_record(text: str) -> dict[str, str]:
    """What `dscl -read` prints: `Name: value`, or the value in the next line, after a space."""
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith(" ") and name:
            found[name] = f"{found[name]} {line.strip()}".strip()
        elif named := re.fullmatch(r"(?:dsAttrType\w+:)?([A-Za-z]\w*):(.*)", line):
            name, found[named[1]] = named[1], named[2].strip()
    return found


def parse_ids(text: str) -> frozenset[int]:
    """What `dscl -list` prints: a name and a number per line."""
    return frozenset(int(number) for number in re.findall(r"\s(-?\d+)$", text, re.M))


def account_steps(layout: Layout, facts: AccountFacts) -> list[Step]:
    """Make what is missing of the account and its group. Raises InstallError."""
    number = _number(facts)
    group = {"PrimaryGroupID": number, "RealName": "Verger", "Password": "*"}
    user = {
        "UniqueID": number,
        "PrimaryGroupID": number,
        "RealName": "Verger",
        "NFSHomeDirectory": str(layout.home),
        "UserShell": "/usr/bin/false",
        "IsHidden": "1",
        "Password": "*",
    }
    return [
        *_record_steps(GROUP_RECORD, facts.group, group),
        *_record_steps(USER_RECORD, facts.user, user),
    ]


def account_removal(facts: AccountFacts) -> list[Step]:
    """Delete account and group, as far as they are there."""
    records = ((USER_RECORD, facts.user), (GROUP_RECORD, facts.group))
    return [
        Run(what=f"delete {record}", argv=(*DSCL, "-delete", record))
        for record, attributes in records
        if attributes
    ]


def _number(facts: AccountFacts) -> str:
    """The id of both, as the directory writes it."""
    if present := facts.user.get("UniqueID"):
        group = facts.group.get("PrimaryGroupID", present)
        if int(present) < MIN_ID or group != present:
            raise InstallError(
                f"there is an account {USER} with the id {present} that Verger has not made; "
                "rename or delete it first"
            )
        return present
    if present := facts.group.get("PrimaryGroupID"):
        return present
    free = (n for n in range(FIRST_ID, LAST_ID + 1) if n not in facts.used_ids)
    if (number := next(free, None)) is None:
        raise InstallError(f"no id from {FIRST_ID} to {LAST_ID} is free for the account {USER}")
    return str(number)


def _record_steps(
    record: str, present: Mapping[str, str], wanted: Mapping[str, str]
) -> Iterable[Step]:
    if not present:
        delete = Run(what=f"delete {record}", argv=(*DSCL, "-delete", record))
        yield Run(what=f"account {record}", argv=(*DSCL, "-create", record), undo=(delete,))
    for name, value in wanted.items():
        if _is_same(name, present.get(name), value):
            continue
        before = present.get(name)
        old = (*DSCL, "-create", record, name, before or "")
        undo = (Run(what=f"{record} {name}", argv=old),) if before is not None else ()
        yield Run(
            what=f"account {record}: {name} {value}",
            argv=(*DSCL, "-create", record, name, value),
            check=(*DSCL, "-read", record, name),
            expect="" if name == "Password" else value,
            undo=undo,
        )


def _is_same(name: str, found: str | None, wanted: str) -> bool:
    # A password is shown as asterisks, whichever it is.
    return found is not None and (found == wanted or name == "Password")
