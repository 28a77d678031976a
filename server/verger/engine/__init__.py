"""The engine process: schedules, runs and emits. Only `device/` below may know MLX."""
