"""From a source to typed columns of tensors."""
