"""The command `isounc guard fit|check|report`, on tables as people have them."""

import json

import numpy as np
import pytest

from isounc.guard import Guard
from isounc.guard.command import read_table, run
from tests.guard.made_up import uniform_sample


def write(path, scores, correct, name="entropy"):
    rows = "\n".join(f"{s!r},{c},x" for s, c in zip(scores.tolist(), correct, strict=True))
    path.write_text(f"{name},correct,question\n{rows}\n")
    return str(path)


def test_fit_check_report(tmp_path, capsys):
    rng = np.random.default_rng(0)
    scores, correct = uniform_sample(500, 0.7, rng)
    table, guard = write(tmp_path / "a.csv", scores, correct), str(tmp_path / "guard.json")
    fit = [
        "fit",
        table,
        "--score",
        "entropy",
        "--target-risk",
        "0.2",
        "--out",
        guard,
        "--model",
        "m",
    ]
    assert run(fit)
    said = capsys.readouterr().out
    assert "Accept where entropy is at or below" in said
    expected = Guard.fit(scores, correct, target_risk=0.2, score="entropy", model="m")
    assert Guard.load(guard) == expected

    new, labels = uniform_sample(300, 0.7, rng)
    assert run(["check", guard, write(tmp_path / "b.csv", new, labels)])
    accepted = new <= expected.threshold
    said = capsys.readouterr().out
    assert f"({accepted.sum()} of 300), of these wrong" in said
    assert f"({(accepted & ~labels).sum()} of {accepted.sum()})" in said
    assert "Nothing speaks against the promise." in said

    few = write(tmp_path / "few.csv", np.full(20, expected.threshold), np.arange(20) % 4 != 0)
    assert run(["check", guard, few])
    said = capsys.readouterr().out
    assert "of these wrong 0.25 " in said and "chance may explain it" in said

    bad = write(tmp_path / "c.csv", new, rng.uniform(size=300) > 0.6)
    assert not run(["check", guard, bad])
    said = capsys.readouterr().out
    assert "More answers are wrong than promised" in said
    assert "An alarm of drift was raised at answer" in said
    with pytest.raises(ValueError, match="TABLE must hold other answers than the guard was fitted"):
        run(["check", guard, table])

    assert run(["report", guard, table, "--out", str(tmp_path / "page")])
    page = (tmp_path / "page" / "report.html").read_text()
    assert page.count("data:image/png;base64") == 2
    assert "calibration sample" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert run(["report", guard, bad, "--out", str(tmp_path / "page")])
    assert "other answers than" in (tmp_path / "page" / "report.html").read_text()


def test_no_threshold_is_an_answer(tmp_path, capsys):
    table = write(tmp_path / "a.csv", np.zeros(100), np.arange(100) % 2 == 0, "score")
    guard = tmp_path / "guard.json"
    assert not run(["fit", table, "--out", str(guard)])
    said = capsys.readouterr().out
    assert "No threshold keeps the promise" in said and "--higher-is-certain" not in said
    assert json.loads(guard.read_text())["threshold"] is None
    other = write(tmp_path / "b.csv", np.zeros(90), np.arange(90) % 2 == 0, "score")
    assert run(["check", str(guard), other])
    assert "Accepted: 0 [0, 0.0402] (0 of 90)" in capsys.readouterr().out
    assert run(["report", str(guard), table, "--out", str(tmp_path / "page")])


def test_high_is_certain(tmp_path, capsys):
    scores, correct = uniform_sample(500, 0.7, np.random.default_rng(1))
    table = write(tmp_path / "a.csv", -scores, correct, "log_p")
    guard = str(tmp_path / "g.json")
    run(
        [
            "fit",
            table,
            "--score",
            "log_p",
            "--higher-is-certain",
            "--out",
            guard,
            "--target-risk",
            "0.2",
        ]
    )
    threshold = Guard.fit(scores, correct, target_risk=0.2).threshold
    assert threshold is not None
    assert Guard.load(guard).threshold == -threshold
    assert "Then" not in capsys.readouterr().out
    assert not run(["fit", table, "--score", "log_p", "--out", guard])
    assert "Then give --higher-is-certain." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("score,right\n1,1\n", r"have a column correct, got score, right; --correct names another"),
        (
            "score,correct\n1,yes\n",
            "correct of TABLE a.csv must be true, false, 1 or 0, got 'yes' in row 1",
        ),
        (
            "score,correct\n1,1\nhigh,0\n",
            "score of TABLE a.csv must be numbers, got 'high' in row 2",
        ),
        ("score,correct\n1\n", "must have 2 cells"),
        ("", "must have a header"),
        ("score,correct\n", "at least one, got 0 and 0"),
        ("score,correct\nnan,1\n", "scores must be defined, got NaN at 1 of 1"),
    ],
)
def test_bad_tables(tmp_path, content, message):
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        run(["fit", str(path), "--out", str(tmp_path / "g.json")])
    assert not (tmp_path / "g.json").exists()


def test_kinds_of_truth(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("score,correct\n1e300,True\n-inf,0\n0,1.0\n 2 ,FALSE\n")
    scores, correct = read_table(str(path), "score", "correct")
    assert scores.tolist() == [1e300, -np.inf, 0, 2]
    assert correct.tolist() == [1, 0, 1, 0]
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises((ValueError, ImportError), match=r"must be a Parquet file|pyarrow"):
        read_table(str(tmp_path / "a.parquet"), "score", "correct")
