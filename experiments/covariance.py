"""What covariances from other data do: `isounc covariance`, whose --help explains it."""

import sys

from isounc.__main__ import main

if __name__ == "__main__":
    main(["covariance", *sys.argv[1:]])
