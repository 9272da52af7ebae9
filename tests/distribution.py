"""Which of the processes that run the tests gets which file, and in which order."""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

FIRST = (
    # These clear JAX's caches, which takes seconds where many programs are in them, and after which
    # every function must be traced again.
    "tests/runs/test_process.py",
    "tests/test_likelihoods.py",
    # A third of the time.
    "tests/sampling",
    # These clear the caches as well, at their ends.
    "tests/studies/calibration/test_calibration.py",
    "tests/studies/agreement/test_agreement.py",
    # What takes longest: no long file begins when everything else is done.
    "tests/serve",
    "tests/estimates/test_links.py",
    "tests/gradnorm/test_engine.py",
    "tests/studies/scaling/test_scaling.py",
    "tests/estimates/test_estimate.py",
    "tests/test_notebooks.py",
    "tests/estimates/test_isotropic.py",
    "tests/studies/scaling/test_figures.py",
    "tests/studies/qa/test_qa.py",
    "tests/gradnorm/test_programs.py",
    "tests/llm/answers/test_norms.py",
    "tests/studies/scaling/test_reading.py",
)
"""Files and folders that begin first; others follow by their number of tests."""
TOGETHER = ("tests/sampling", "tests/serve")
"""Folders whose files share what takes long: traced programs, a service."""


class WholeFiles(LoadFileScheduling):
    """Files, and a few folders, as a whole: a fixture of a module is made once, in one process."""

    def _split_scope(self, nodeid: str) -> str:
        for folder in TOGETHER:
            if nodeid.startswith(f"{folder}/"):
                return folder
        return super()._split_scope(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        ranks = {scope: rank for rank, scope in enumerate(FIRST)}
        # The queue itself goes by the number of tests, the most first.
        first = min(self.workqueue, key=lambda scope: ranks.get(scope, len(FIRST)))
        self.workqueue.move_to_end(first, last=False)
        super()._assign_work_unit(node)

    def remove_node(self, node: WorkerController) -> str | None:
        """Take a process out, and give the tests that it had not begun to others.

        Returns the test in which it crashed, if it did. That one has failed and is not run again: it
        might end one process after another. Files that were done are not given to anybody: a process
        with nothing to run would report nothing, and be waited for without end.
        """
        files = self.assigned_work.pop(node)
        left = [
            (file, [test for test, done in tests.items() if not done])
            for file, tests in files.items()
        ]
        left = [(file, tests) for file, tests in left if tests]
        crashed = left[0][1].pop(0) if left else None
        self.workqueue.update({file: dict.fromkeys(tests, False) for file, tests in left if tests})
        for other in self.assigned_work:
            self._reschedule(other)
        return crashed
