"""Wire APIs: request bytes → typed request, deltas → response objects. Pure: no I/O, no clock."""
