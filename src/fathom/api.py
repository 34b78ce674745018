"""The assembler: the only place where all rooms meet."""
