"""The parts of `scripts/first_hour`: what only a Mac can show, and the page that says it."""
