"""What a client needs to know to speak to a server, and how each writes it down."""
