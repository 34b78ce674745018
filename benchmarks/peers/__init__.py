"""The papers' training steps in plain PyTorch, and in the libraries that have them."""
