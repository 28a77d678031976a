"""The `verger` command: one module per subcommand, put together in main.py."""
