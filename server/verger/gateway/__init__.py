"""The process that clients talk to: HTTP and SSE on one side, the engine's socket on the other."""
