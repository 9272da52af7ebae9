"""Scaling curves: the command `isounc scaling`, whose --help explains it."""

import sys

from isounc.__main__ import main

if __name__ == "__main__":
    main(["scaling", *sys.argv[1:]])
