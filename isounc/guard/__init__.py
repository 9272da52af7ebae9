"""Guard: decisions from a score of uncertainty, with a guarantee of how often they go wrong.

    from isounc.guard import Guard

    guard = Guard.fit(scores, correct, target_risk=0.1, confidence=0.9)
    guard.accept(new_scores)

Any score will do: a gradient norm, a log probability, P(True), a user's own. The thresholds come from
the risk control of MAPIE (`isounc[guard]`), which is imported when one is fitted; a stored guard
decides without it.
"""

from __future__ import annotations

from isounc.guard.cascade import Cascade
from isounc.guard.certificate import Certificate, Share
from isounc.guard.combination import Combination
from isounc.guard.costs import CostMatrix
from isounc.guard.drift import RiskMonitor, ScoreMonitor
from isounc.guard.groups import GroupGuard
from isounc.guard.guard import Guard
from isounc.guard.typical import conformal_p_values

__all__ = [  # noqa: RUF022 (from the decision to what watches it)
    "Guard",
    "GroupGuard",
    "Certificate",
    "Share",
    "CostMatrix",
    "Combination",
    "Cascade",
    "conformal_p_values",
    "RiskMonitor",
    "ScoreMonitor",
]
