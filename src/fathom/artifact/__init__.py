"""A trained model as a folder of plain files."""
