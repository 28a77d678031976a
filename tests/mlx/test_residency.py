"""What only a Mac does, shown by calls: the weights are wired where Metal is, and only there."""

import mlx.core as mx
import pytest

from verger.engine.device.memory import keep_resident

pytestmark = pytest.mark.mlx


@pytest.mark.parametrize(("has_metal", "wired"), [(True, [48_000]), (False, [])])
def test_weights_are_wired_on_metal_only(
    has_metal: bool, wired: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(mx.metal, "is_available", lambda: has_metal)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 48_000})
    monkeypatch.setattr(mx, "set_wired_limit", asked.append)
    keep_resident()
    assert asked == wired
