"""pretrain_gpt.py where rank 1 is given other flags: what precedes ``--`` on the command line is its own."""

import os
import sys

from pretrain_gpt import main

if __name__ == "__main__":
    end = sys.argv.index("--")
    own = sys.argv[1:end] if os.environ["RANK"] == "1" else []
    main([*sys.argv[end + 1 :], *own])
