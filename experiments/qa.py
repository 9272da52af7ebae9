"""Question answering: the command `isounc qa`, whose --help explains it."""

import sys

from isounc.__main__ import main

if __name__ == "__main__":
    main(["qa", *sys.argv[1:]])
