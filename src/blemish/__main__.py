"""`python -m blemish`: the command line, so that `torchrun … -m blemish fit …` can start it."""

from __future__ import annotations

import sys

from blemish.cli import main

if __name__ == "__main__":
    sys.exit(main())
