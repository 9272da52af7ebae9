"""Uncertainty of language models in a world whose truth is known: the command `isounc world`."""

import sys

from isounc.__main__ import main

if __name__ == "__main__":
    main(["world", *sys.argv[1:]])
