"""Covariances built from other data than the training data: the command `isounc covariance`."""

import sys

from isounc.__main__ import main

if __name__ == "__main__":
    main(["covariance", *sys.argv[1:]])
