"""The command line: one file per command. Parses, calls and renders; importing a command imports no torch."""
