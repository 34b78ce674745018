"""What a model can be trained to do, one objective a file."""
