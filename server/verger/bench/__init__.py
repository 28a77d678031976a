"""What `verger bench` measures, and how; the command itself is in cli/bench.py."""
