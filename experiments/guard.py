"""Whether a guard keeps its promise: `isounc guard`, whose --help explains it."""

import sys

from isounc.__main__ import main

if __name__ == "__main__":
    main(["guard", *sys.argv[1:]])
