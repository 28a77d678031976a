"""Everything that touches MLX: arrays never leave this package, ids and floats do."""
