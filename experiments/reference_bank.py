"""The bank of reference posteriors: the command `isounc bank`, whose --help explains it."""

import sys

from isounc.__main__ import main

if __name__ == "__main__":
    main(["bank", *sys.argv[1:]])
