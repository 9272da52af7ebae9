"""Which cells passed the gate of their reference, in a table and in words."""

from __future__ import annotations

import numpy as np
import pandas as pd

from isounc.runs.words import listed
from isounc.studies.scaling.results import Results


def gate_sentence(results: Results) -> str:
    """How many cells passed the gate of their reference, and which did not, or not everywhere."""
    cells = references(results)
    if cells.empty:
        return ""
    passed = cells["gate"] == "pass"
    text = f"{passed.sum()} of {len(cells)} cells passed the gate of their reference"
    first = (results.run.settings.get("sampling") or {}).get("sampler")
    used = cells[cells["gate"] != "fail"]
    again = used[used["sampler"].notna() & (used["sampler"] != first)]
    if first and len(again):
        samplers = listed(sorted(again["sampler"].unique()))
        verb = "was" if len(again) == 1 else "were"
        text += f" ({len(again)} of these failed at first and {verb} sampled again by {samplers})"
    failed = cells[cells["gate"] == "fail"]
    if len(failed):
        verb = "is" if len(failed) == 1 else "are"
        text += f"; {len(failed)} failed and {verb} in no number below: {_places(failed)}"
    partly = cells[cells["gate"] == "part"]
    if len(partly):
        text += (
            f"; {len(partly)} passed but for regions in which rare draws decide about the variance, "
            f"and which are in no number below: {_places(partly)}"
        )
    return text + "."


def _places(cells: pd.DataFrame) -> str:
    """Where cells are, with the number of seeds."""
    counts = cells.groupby(["setup", "width", "failed"], observed=True).size()
    return listed(
        f"{setup} at width {width}{region and f', {region}'} "
        f"({count} {'seed' if count == 1 else 'seeds'})"
        for (setup, width, region), count in counts.items()  # type: ignore[misc]
    )


def references(results: Results) -> pd.DataFrame:
    """The cells of the result rows, with the verdict on the reference and who sampled it.

    The rows over the posterior, and those at its draws, depend on no fitted point, so that the gate
    of the reference is the only one that they have. `gate` is pass or fail, or part of a cell that
    fails in the regions that `failed` names.
    """
    rows = results.rows[results.rows["point"].isin(["posterior", "draw"])]
    by = ["setup", "width", "seed"]
    judged = rows.drop_duplicates([*by, "region"])
    cells = rows.drop_duplicates(by)[[*by, "sampler"]]
    cell = judged.groupby(by, observed=True, sort=False).ngroup().to_numpy()
    failed = (judged["gate"] == "fail").to_numpy(bool)
    num_failed = np.bincount(cell, failed, len(cells))
    some, all_ = num_failed > 0, num_failed == np.bincount(cell, minlength=len(cells))
    cells["gate"] = np.select([all_, some], ["fail", "part"], "pass")
    cells["failed"] = ""
    named = judged["region"].astype(str).to_numpy()
    for place in np.flatnonzero(some & ~all_):
        regions = named[(cell == place) & failed]
        cells.iloc[place, cells.columns.get_loc("failed")] = listed(regions)  # type: ignore[call-overload]
    return cells.sort_values(["setup", "width"])
