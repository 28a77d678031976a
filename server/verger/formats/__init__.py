"""Text ⇄ token ids ⇄ events. Pure: no I/O, no clock, no MLX."""
