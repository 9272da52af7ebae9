"""The paper's claims, settled from the tables of all studies: the command `isounc claims`."""

import sys

from isounc.__main__ import main

if __name__ == "__main__":
    main(["claims", *sys.argv[1:]])
