"""Calibration of the sampler: the command `isounc calibration`, whose --help explains it."""

import sys

from isounc.__main__ import main

if __name__ == "__main__":
    main(["calibration", *sys.argv[1:]])
