"""Is the posterior isotropic where it matters? `isounc spectrum`, whose --help explains it."""

import sys

from isounc.__main__ import main

if __name__ == "__main__":
    main(["spectrum", *sys.argv[1:]])
