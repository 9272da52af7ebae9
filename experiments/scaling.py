"""Scaling curves: see `isounc scaling --help`, which this file is a door to.

uv run experiments/scaling.py --preset quick
"""

from isounc.runs.command import main
from isounc.studies.scaling.study import STUDY

if __name__ == "__main__":
    main(STUDY)
