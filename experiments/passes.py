"""Estimates from K networks against their cost: `isounc passes`, whose --help explains it."""

import sys

from isounc.__main__ import main

if __name__ == "__main__":
    main(["passes", *sys.argv[1:]])
