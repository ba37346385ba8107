"""The density dial's data and its choices; the runs themselves are made by hand."""

import csv
import json
from collections import Counter

import demo_seeds
import pytest
from datasets import Dataset

import density
import density_data
import density_report
import density_settings


pytestmark = pytest.mark.any_trl


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He's  DUMB.", "he's dumb"),
        ("he 's dumb", "he's dumb"),
        ("What , really ? ? ?", "what , really ?"),
        ("What, really?!", "what , really ?!"),
        ("I don’t “know”...", 'i don\'t " know "'),
        ("f*ck @ss", "f*ck @ss"),
        ("they do n't care .", "they don't care"),
    ],
)
def test_spelling(text, expected):
    assert density_data.normalised(text) == expected
    assert density_data.normalised(expected) == expected


def write_tsv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        writer.writerows([("toxic", "neutral1", "neutral2", "neutral3"), *rows])


def test_parts_share_no_sentence(tmp_path):
    rows = [
        (f"you are a damn fool number {i} i say", f"You are a fool number {i} I say.", f"you are number {i} i say", "")
        for i in range(40)
    ]
    rows += [(f"so this is shit {i}", "that could be better", "", "") for i in range(10)]
    rows += [("YOU are a damn fool number 3 i say", "other", "", ""), ("oh no", "no", "", "")]
    write_tsv(tmp_path / "rows.tsv", rows)
    parts = density_data.paradetox(tmp_path / "rows.tsv", test=5, gold=8)
    sources = [{row["prompt"] + row["rejected"] for row in part} for part in parts[:4]]
    assert [len(part) for part in parts[:4]] == [14, 23 * 2, 8 * 2, 5] and [len(s) for s in sources] == [14, 23, 8, 5]
    assert sum(map(len, sources)) == len(set().union(*sources)) == 50
    assert all(row["prompt"] == "you are" for row in parts.test)
    assert parts.counts == {"rewrites": 90, "minimal edits": 80, "repeated sentences": 1, "sentences with no more words than a prompt": 1}  # fmt: skip
    assert {tuple(sorted(row)) for row in parts.reward} == {("chosen", "prompt", "rejected")}


def test_agreement_by_hand():
    """One leaves out `b`, one `b` and `c`: of 2 and 1 wrong words the other finds 1 and 1; of 2 and 3 right ones 2 and
    2."""
    row = {"prompt": "a", "rejected": " b c d"}
    found = density_data.agreement(Dataset.from_list([{**row, "chosen": " c d"}, {**row, "chosen": " d"}]))
    assert found["pairs of edits"] == 2
    assert found["sensitivity"] == pytest.approx(2 / 3) and found["specificity"] == pytest.approx(4 / 5)
    assert found["auroc"] == pytest.approx((2 / 3 + 4 / 5) / 2)


def result(arm, win_rate, kl=3.0, length=10.0, seed=101, updates=10, **settings):
    point = {"length_controlled": win_rate, "gold": 0.0, "answers": []}
    curve = [
        {"update": update, "win_rate": 0.5 + (win_rate - 0.5) * update / updates, "kl": kl, "length": length, **point}
        for update in range(0, updates + 1, 5)
    ]
    job = density_settings.Job(
        arm, settings.get("lr", 1e-4), settings.get("kl_coef", 0.1), seed, updates, {"lam": 0.95}
    )
    return {"job": job._asdict(), "curve": curve, "seconds": 1.0, "log": []}


def test_where_a_run_has_come_to():
    assert density_settings.final(result("token", 0.9)) == pytest.approx((0.8, 0.9, 3.0, 10.0))


def test_the_best_setting_within_bounds_is_chosen():
    results = [
        result("token", 0.9, kl=8.1, lr=1.0),
        result("token", 0.8, length=12.1, lr=2.0),
        result("token", 0.6, length=11.9, lr=3.0),
        result("token", 0.7, length=8.1, kl=7.9, lr=4.0),
    ]
    assert density.choose(results, human_length=10.0) == (4.0, 0.1, 0.95)
    assert density.choose(results[:2], human_length=10.0) == (2.0, 0.1, 0.95)  # none has the length
    shorter = result("token", 0.95, length=7.0, lr=5.0)
    assert density.choose([shorter, *results[:2]], human_length=10.0) == (2.0, 0.1, 0.95)  # nearest to it
    assert density.choose(results[:1], human_length=10.0) == (1.0, 0.1, 0.95)


def test_every_arm_is_tuned_as_much_on_seeds_that_are_not_reported():
    jobs = {arm: density.tuning_jobs(arm) for arm in density_settings.ARMS}
    settings = {arm: {json.dumps(job[1:]) for job in of_arm} for arm, of_arm in jobs.items()}
    assert all(settings["token"] == of_arm for arm, of_arm in settings.items() if arm != "TRL")
    assert settings["token"] < settings["TRL"]
    assert not {job.seed for of_arm in jobs.values() for job in of_arm} & set(density_settings.SEEDS)
    assert Counter(job.name for of_arm in jobs.values() for job in of_arm).most_common(1)[0][1] == 1


def test_results_are_written(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    metrics = {"eval_accuracy": 0.9, "eval_token_auroc": 0.8, "eval_token_accuracy": 0.7}
    known = {
        "parts": {"test": 5},
        "gold_accuracy": 0.99,
        "parameters": 1000,
        "lengths": {"chosen": 10.0, "rejected": 11.0},
        "human_win_rate": 0.85,
        "reward_model": metrics,
        "reward_model_zero": metrics,
        "sequence_reward_model": {"eval_accuracy": 0.9},
    }
    (tmp_path / "prepared.json").write_text(json.dumps(known))
    monkeypatch.setattr(density_report, "RESULTS", tmp_path / "results")
    rates = dict(zip(density_settings.ARMS, (0.60, 0.62, 0.64, 0.68, 0.80, 0.82), strict=True))
    results = [result(arm, rate + seed / 100, seed=seed) for seed in (1, 2) for arm, rate in rates.items()]
    settings = dict.fromkeys(density_settings.ARMS, (2e-4, 0.05, 0.7))
    tuned = [result(arm, 0.6) for arm in density_settings.ARMS]
    ablations = [
        result("token", 0.7, seed=seed) for _ in density_settings.ABLATIONS for seed in density_settings.ABLATION_SEEDS
    ]
    ablations[1:2] = [result("token", 0.9, length=13.0, seed=seed) for seed in density_settings.ABLATION_SEEDS]
    long = [result("token", 0.9, updates=120)]
    density_report.write_results(tmp_path, tuned, settings, results, long, ablations)
    text = (tmp_path / "results" / "density.md").read_text(encoding="utf-8")
    # The last two examinations are at updates 5 and 10: (0.655 + 0.81) / 2 and (0.66 + 0.82) / 2 for the token arm.
    assert "| token | 0.0002, 0.05, 0.7 | 0.736 (0.689 to 0.784) |" in text
    [less_trl] = [line for line in text.splitlines() if line.startswith("| less TRL |")]
    assert less_trl.endswith("| +0.150 (+0.150 to +0.150) (2) |")
    assert "| as by default | 0.650 |" in text
    assert "| scores as log-odds | 0.800 | 0.900 | 3.0 | 13.0 | 0 of 1 |" in text
    assert "| token, 101 | 120 | 0.900 |" in text
    assert (tmp_path / "results" / "density.png").stat().st_size > 10000


def test_the_demos_figures_over_seeds_by_hand():
    """Differences of .1 and .3: mean .2, and 12.706 * sqrt(.02) / sqrt(2) = 1.271 either way."""

    def figures(terminal, dense):
        by_arm = {"terminal reward": terminal, "dense rewards": dense}
        means = {metric: {"start policy": 1.0, **by_arm} for metric in demo_seeds.METRICS}
        return {**means, demo_seeds.WIN_RATE: by_arm}

    lines = demo_seeds.report([4, 7], [figures(0.5, 0.6), figures(0.4, 0.7)], "python x").splitlines()
    assert "Dense less terminal, seed by seed: +0.200 (-1.071 to +1.471)." in lines
    assert "| 4 | 0.500 | 0.600 |" in lines and "| 7 | 0.400 | 0.700 |" in lines
    [rates] = [line for line in lines if line.startswith("| win rate")]
    assert rates.startswith("| win rate against the start policy |  | 0.450 (")


def test_the_win_rate_at_a_kl_is_interpolated():
    curve = [{"kl": kl, "win_rate": rate} for kl, rate in ((0.0, 0.5), (1.0, 0.6), (3.0, 0.8), (2.0, 0.7))]
    assert density_report.win_rate_at_kl(curve, 0.5) == pytest.approx(0.55)
    assert density_report.win_rate_at_kl(curve, 2.5) == pytest.approx(0.75)
    assert density_report.win_rate_at_kl(curve, 3.5) is None
