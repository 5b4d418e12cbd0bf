"""Prune and train one network: ``python train.py --config configs/quickstart.yaml``."""

import sys

from lit_prune.cli import main

if __name__ == "__main__":
    sys.exit(main())
