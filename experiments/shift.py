"""Gradient norms and other scores in and out of distribution: the command `isounc shift`."""

import sys

from isounc.__main__ import main

if __name__ == "__main__":
    main(["shift", *sys.argv[1:]])
