"""Root acts for whoever a folder belongs to, with no more rights than that one has.

Called by `restore`, which root runs for the service: what the service's account has put into its
folder can then lead nowhere that the account could not go itself. Of use on every POSIX system.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def acting_for_owner(folder: Path) -> Iterator[None]:
    """Of the folder; does nothing for who is not root, or if it is root's. For one thread."""
    if os.name == "nt" or os.geteuid() != 0 or (owner := folder.stat().st_uid) == 0:
        yield
        return
    groups, group = os.getgroups(), os.getegid()
    os.setgroups([])
    os.setegid(_group_of(owner, folder))
    os.seteuid(owner)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def _group_of(owner: int, folder: Path) -> int:
    """The owner's own: the folder's is that of a Mac's administrators, who may do more."""
    # Windows, where commands that import this module run too, has none.
    import pwd

    try:
        return pwd.getpwuid(owner).pw_gid
    except KeyError:
        return folder.stat().st_gid
