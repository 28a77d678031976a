"""What has to happen on the device and the disk before the next plan, and what only after it.

Owned by `kv_budget.py`, which emits into it; the scheduler takes everything with each plan. Pure.

A plan being made will cut windows and lengthen prefixes. Such a window is there only after the
plan: freeing it comes with the next one, and neither it nor such a prefix can be saved yet.
"""

from verger.engine.prefix_files import SaveOrder
from verger.engine.steps import Edit, FreeWindow, Running


class PendingEdits:
    """In order of emission."""

    def __init__(self) -> None:
        self._edits: list[Edit | SaveOrder] = []
        self._late_edits: list[Edit | SaveOrder] = []
        self._uncut_windows: set[int] = set()
        self._uncomputed_rows: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._edits or self._late_edits)

    def take(self) -> tuple[Edit | SaveOrder, ...]:
        """What was emitted since the last call, for the plan that is complete now."""
        edits = tuple(self._edits)
        self._edits, self._late_edits = self._late_edits, []
        self._uncut_windows.clear()
        self._uncomputed_rows.clear()
        return edits

    def emit(self, edit: Edit) -> None:
        """Before the next plan, unless it frees what that plan will cut."""
        is_late = isinstance(edit, FreeWindow) and edit.window_id in self._uncut_windows
        (self._late_edits if is_late else self._edits).append(edit)

    def will_cut(self, window_id: int) -> None:
        """The plan being made cuts this window."""
        self._uncut_windows.add(window_id)

    def will_compute(self, request_id: int) -> None:
        """The plan being made lengthens this row's prefix."""
        self._uncomputed_rows.add(request_id)

    def save(self, order: SaveOrder) -> bool:
        """False where what is to be saved will be there only after the plan being made."""
        source = order.source
        is_uncomputed = isinstance(source, Running) and source.request_id in self._uncomputed_rows
        if order.window_id in self._uncut_windows or is_uncomputed:
            return False
        self._edits.append(order)
        return True
