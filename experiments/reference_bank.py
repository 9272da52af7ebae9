"""The bank of reference posteriors: see `isounc bank --help`, which this file is a door to.

uv run experiments/reference_bank.py
"""

from isounc.runs.command import main
from isounc.studies.bank.study import STUDY

if __name__ == "__main__":
    main(STUDY)
