"""Tables of runs that take hours grow by a run where the folder of the earlier ones is gone."""

import json

import pytest

import real_density_report
from imdb import REVIEWS
from provenance import kept_runs, with_kept


pytestmark = pytest.mark.any_trl


def leave(folder, arm, seed, win_rates, auroc=0.75):
    """What a run and the reward model leave in a folder."""
    (folder / "results").mkdir(parents=True, exist_ok=True)
    curve = [
        {
            "update": 3 * place,
            "win_rate": rate,
            "lexicon_win_rate": rate,
            "kl": 2.0 * place,
            "length": 48.0,
            "distinct_tokens": 0.8,
            "outcomes": [1.0, 0.0, 0.5, rate],
            "texts": ["one", "two", "three"],
        }
        for place, rate in enumerate(win_rates)
    ]
    run = {"job": {"arm": arm, "seed": seed}, "processor_seconds": 60, "commit": "abc", "curve": curve, "log": [{}]}
    (folder / "results" / f"{arm}-{seed}.json").write_text(json.dumps(run))
    (folder / "reward_model.json").write_text(json.dumps({"token_auroc": auroc, "seconds": 60, "commit": "abc"}))


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setattr(real_density_report, "RESULTS", tmp_path)
    return tmp_path / "imdb.md"


def test_a_new_seed_joins_the_runs_of_a_folder_that_is_gone(table, tmp_path):
    for seed in (1, 2):
        leave(tmp_path / "first", "PPO, terminal", seed, [0.5, 0.6, 0.7])
        leave(tmp_path / "first", "PPO, token", seed, [0.5, 0.7, 0.8])
    real_density_report.write_report(REVIEWS, tmp_path / "first")
    before = table.read_text()
    assert "| PPO, token | 2 | 0.600 (0.600 and 0.600) |" in before and "seeds: 2" in before
    leave(tmp_path / "second", "PPO, token", 3, [0.5, 0.8, 0.9])
    real_density_report.write_report(REVIEWS, tmp_path / "second")
    after = table.read_text()
    assert "| PPO, token | 3 | 0.617 (" in after and "| PPO, terminal | 2 |" in after
    assert [row for row in after.splitlines() if row.startswith("| reward model")]
    assert all("log" not in run for run in kept_runs(table).values())


def test_runs_of_other_models_are_refused(table, tmp_path):
    leave(tmp_path / "first", "PPO, token", 1, [0.5, 0.6])
    real_density_report.write_report(REVIEWS, tmp_path / "first")
    before = table.read_text()
    leave(tmp_path / "second", "PPO, token", 2, [0.5, 0.6], auroc=0.752)
    with pytest.raises(SystemExit, match=r"reward_model .*0\.752.* 0\.75.*: delete that file"):
        real_density_report.write_report(REVIEWS, tmp_path / "second")
    assert table.read_text() == before and len(kept_runs(table)) == 2


def test_a_run_replaces_the_one_of_its_name(tmp_path):
    table = tmp_path / "table.md"
    with_kept(table, {"a": {"value": 1}, "b": {"value": 2}})
    assert with_kept(table, {"a": {"value": 3}}) == {"a": {"value": 3}, "b": {"value": 2}} == kept_runs(table)
