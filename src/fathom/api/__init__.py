"""The assembler: the only room where all others meet."""
