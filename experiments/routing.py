"""When should a large network answer in place of a small one? The command `isounc routing`."""

import sys

from isounc.__main__ import main

if __name__ == "__main__":
    main(["routing", *sys.argv[1:]])
