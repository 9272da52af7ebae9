"""Agreement with NumPyro's NUTS: see `isounc agreement --help`, which this file is a door to.

uv run experiments/agreement.py
"""

from isounc.runs.command import main
from isounc.studies.agreement.study import STUDY

if __name__ == "__main__":
    main(STUDY)
