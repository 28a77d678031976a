"""What only a Mac has: launchd's job, the service's account and folders. Used by the CLI.

Everything here can be tried elsewhere: plans are pure, and each command goes through a runner that
a test can replace. What only a Mac can show is listed in launchd/README.md.
"""
