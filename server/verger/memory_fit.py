"""Does a model fit a machine? Weights, a useful KV cache and what a step computes in, against what
the GPU may hold.

Called by catalogue.py when a model is chosen, listed or about to be downloaded, and by
engine/device/memory.py with MLX's own figure before weights are loaded. Pure: must not know the
machine, MLX or the catalogue. How much KV there is once a model is loaded is the engine's to say.

macOS lets the GPU hold two thirds of the memory up to 36 GB and three quarters above, unless
somebody raised iogpu.wired_limit_mb. The same rule is used elsewhere: it leaves the system enough.
"""

from dataclasses import dataclass

GIB = 1 << 30
SMALL_MAC_BYTES = 36 * GIB
MAC_SIZES_GIB = (8, 16, 18, 24, 32, 36, 48, 64, 96, 128, 192, 256, 512)
"""The memory that Macs with Apple silicon were sold with."""
USEFUL_KV_TOKENS = 32_768
"""One agent's conversation: with less KV than that a model is not worth loading."""
ROWS = 16
"""Answers at once, each with a window of the sliding layers."""
BUFFER_CACHE_BYTES = 2 * GIB
"""Freed buffers that MLX may keep for reuse."""


@dataclass(frozen=True, slots=True)
class MachineMemory:
    """A machine's memory, and the part of it that weights and KV may take."""

    total_bytes: int
    usable_bytes: int

    @classmethod
    def of(cls, total_bytes: int, wired_limit_bytes: int = 0) -> "MachineMemory":
        """By the rule, or by the limit that somebody set (0: nobody did)."""
        is_small = total_bytes <= SMALL_MAC_BYTES
        usable_bytes = total_bytes * 2 // 3 if is_small else total_bytes * 3 // 4
        return cls(total_bytes, wired_limit_bytes or usable_bytes)


@dataclass(frozen=True, slots=True)
class Need:
    """What a model takes, at least, to be of use."""

    weight_bytes: int
    kv_bytes: int = 0
    step_bytes: int = 0
    """What a step computes in, and the buffers that MLX keeps for the next."""

    @classmethod
    def of(
        cls, weight_bytes: int, token_bytes: int, snapshot_bytes: int, step_bytes: int
    ) -> "Need":
        """From a catalogue's figures."""
        kv_bytes = USEFUL_KV_TOKENS * token_bytes + ROWS * snapshot_bytes
        return cls(weight_bytes, kv_bytes, step_bytes)

    @property
    def total_bytes(self) -> int:
        """All of it together."""
        return self.weight_bytes + self.kv_bytes + self.step_bytes

    def fits(self, memory: MachineMemory) -> bool:
        """Whether the GPU may hold all of it."""
        return self.total_bytes <= memory.usable_bytes

    def shortage(self, name: str, memory: MachineMemory) -> str:
        """Why it does not fit, with the numbers."""
        parts = [f"{_gib(self.weight_bytes)} of weights"]
        if self.kv_bytes:
            parts.append(f"{_gib(self.kv_bytes)} of KV for {USEFUL_KV_TOKENS:,} tokens")
        if self.step_bytes:
            parts.append(f"{_gib(self.step_bytes)} to compute in")
        return (
            f"{name} does not fit this machine: it needs {_gib(self.total_bytes)} "
            f"({', '.join(parts)}), and may take {_gib(memory.usable_bytes)} of the "
            f"{_gib(memory.total_bytes)} that there are"
        )


def smallest_mac_gib(need: Need) -> int | None:
    """The smallest Mac that the model fits, by its memory; None if it fits none."""
    sizes = (size for size in MAC_SIZES_GIB if need.fits(MachineMemory.of(size * GIB)))
    return next(sizes, None)


def _gib(nbytes: int) -> str:
    return f"{nbytes / GIB:.1f} GiB"
