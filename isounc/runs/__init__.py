"""Machinery that every experiment needs and none owns: run folders, executors, tables, pages.

import isounc.runs

run = isounc.runs.load("runs/scaling-quick")  # or published results: "results/standard"
run.results.groupby(["problem", "width"])["pearson"].median()
"""

from isounc.runs.folder import Record, RunFolder

__all__ = ["Record", "RunFolder", "load"]

load = RunFolder.load
