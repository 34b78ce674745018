"""Building blocks that several models and objectives share."""
