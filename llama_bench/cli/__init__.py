"""The command line: one module a command, and the only package that prints."""
