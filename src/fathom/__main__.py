"""`python -m fathom`, and under torchrun `torchrun --nproc-per-node 2 -m fathom fit …`: the command line."""

from __future__ import annotations

import os

if __name__ == "__main__":
    if "WORLD_SIZE" in os.environ:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # each process would tell the same
    from fathom.cli import main

    main()
