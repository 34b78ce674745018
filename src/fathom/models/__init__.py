"""Architectures, one family a file: plain modules that turn a batch into features and know no loss."""
