"""A child of the test's process that can be killed in the middle of what it does."""

import os
import warnings
from collections.abc import Callable


def forked(act: Callable[[], object]) -> int:
    """Its process id. It ends with what it has to do, and never comes back into the test."""
    with warnings.catch_warnings():
        # From Python 3.12 on it warns where other threads run; what is done here needs none.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            act()
        finally:
            os._exit(0)
    return child
