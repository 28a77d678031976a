"""Training tools of the embedded model nano; nothing in the package imports them."""
