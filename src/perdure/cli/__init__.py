"""The command line: one module per kind of work, imported only when its command runs."""
