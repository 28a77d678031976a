"""One module per group of routes; each turns one wire API into turns of the engine."""
