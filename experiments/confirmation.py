"""The logit-scaled estimate confirmed or refuted: `isounc confirmation`, whose --help explains it."""

import sys

from isounc.__main__ import main

if __name__ == "__main__":
    main(["confirmation", *sys.argv[1:]])
