"""Calibration of the sampler: see `isounc calibration --help`, which this file is a door to.

uv run experiments/calibration.py
"""

from isounc.runs.command import main
from isounc.studies.calibration.study import STUDY

if __name__ == "__main__":
    main(STUDY)
