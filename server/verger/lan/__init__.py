"""How the office network learns of a server, and how a laptop finds one: multicast DNS."""
