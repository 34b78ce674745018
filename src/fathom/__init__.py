"""Fathom: from raw data to a deep learning model that you understand, trust and ship."""

__version__ = "0.1.0"
