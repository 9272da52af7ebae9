"""Agreement with NumPyro's NUTS: the command `isounc agreement`, whose --help explains it."""

import sys

from isounc.__main__ import main

if __name__ == "__main__":
    main(["agreement", *sys.argv[1:]])
