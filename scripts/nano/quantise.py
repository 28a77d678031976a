"""MXFP4 rounding in PyTorch, number for number as `mx.quantize(mode="mxfp4", group_size=32)`.

Called by `network` during quantisation-aware training. A test compares it with MLX.
"""

import torch
from torch import Tensor

GROUP_SIZE = 32
LARGEST = 6.0
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of a 4-bit float with 2 exponent bits


def mxfp4(weight: Tensor) -> Tensor:
    """Each group of 32 along the last axis times a power of two, rounded to 4-bit floats."""
    groups = weight.unflatten(-1, (-1, GROUP_SIZE))
    largest = groups.abs().amax(dim=-1, keepdim=True).clamp(min=2.0**-120)
    scale = torch.exp2(torch.ceil(torch.log2(largest / LARGEST)))
    scaled = (groups / scale).clamp(-LARGEST, LARGEST)
    # Steps are 0.5 below 2, 1 below 4, 2 from there on; torch rounds halves to even, as MLX does.
    step = torch.where(scaled.abs() < 2, 0.5, torch.where(scaled.abs() < 4, 1.0, 2.0))
    return (torch.round(scaled / step) * step * scale).flatten(-2)


def mxfp4_straight_through(weight: Tensor) -> Tensor:
    """Rounded forward, identity backward."""
    return weight + (mxfp4(weight) - weight).detach()
