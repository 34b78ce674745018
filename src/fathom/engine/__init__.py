"""The one training loop, for every objective."""
