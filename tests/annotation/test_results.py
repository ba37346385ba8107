"""Results: a part of the tests of annotation."""

import json
import sys

import pytest
from datasets import load_from_disk

import tiny
from annotating import opened, pairs, serving
from annotation_cases import ANSWERS, row_of, save_next
from trl_tokenreward import TokenRewardConfig, TokenRewardTrainer, read_annotations
from trl_tokenreward.cli import main as cli
from trl_tokenreward.editing.edit_dataset import edit_dataset
from trl_tokenreward.editing.editors import Editor


pytestmark = pytest.mark.any_trl


def annotated(folder):
    dataset = pairs(*ANSWERS)
    with opened(dataset, folder, per_row=2, about={"dataset": "mine"}, criteria="be nice") as store:
        for name in ("ada", "bob"):
            save_next(store, name)  # alike
        save_next(store, "ada", "very bad", "good")  # row 1
        row_of(store, "bob")
        store.skip("bob", "t", 1, "nothing_wrong")
        row_of(store, "ada")
        store.skip("ada", "t", 2, "other", "a | b\nc")
    return dataset


def test_the_edits_train_a_reward_model(tmp_path):
    annotated(tmp_path / "work")
    annotations = read_annotations(tmp_path / "work")
    assert annotations.counts() == {"edited": 3, "nothing_wrong": 1, "other": 1}
    assert annotations.by_annotator() == {
        "ada": {"edited": 2, "skipped": 1, "median edit ratio": pytest.approx((2 / 16 + 3 / 15) / 2)},
        "bob": {"edited": 1, "skipped": 1, "median edit ratio": 2 / 16},
    }
    dataset = annotations.save(tmp_path / "edits")
    assert load_from_disk(str(tmp_path / "edits")).to_list() == dataset.to_list()
    assert dataset.to_list()[2] == {
        "prompt": "p1",
        "chosen": "the answer number 1 is good indeed",
        "rejected": ANSWERS[1],
        "row": 1,
        "annotator": "ada",
        "edit_ratio": 0.2,
    }
    dropped = [json.loads(line) for line in (tmp_path / "edits" / "dropped.jsonl").read_text().splitlines()]
    assert [(row["row"], row["annotator"], row["reason"], row["detail"]) for row in dropped] == [
        (1, "bob", "nothing_wrong", ""),
        (2, "ada", "other", "a | b\nc"),
    ]
    # Row 0 alike; of row 1 ada marked "very" and "bad", bob nothing. n_11 = 1, n_10 = 2, n_00 = 13.
    agreement = json.loads((tmp_path / "edits" / "agreement.json").read_text())
    assert agreement["rows"] == 2 and agreement["f1"]["value"] == pytest.approx(2 / 4)
    assert agreement["alpha"]["value"] == pytest.approx(1 - 31 * 2 / (28 * 4))
    card = (tmp_path / "edits" / "README.md").read_text()
    for part in ("| edited | 3 |", "| other | 1 |", "| bob | 1 | 1 | 0.125 |", "| dataset | `mine` |", "be nice"):
        assert part in card, part
    assert "| ada and bob | 2 | 16 | 87.5% |" in card
    with pytest.raises(ValueError, match="exists already"):
        annotations.save(tmp_path / "edits")

    args = TokenRewardConfig(
        str(tmp_path / "model"), use_cpu=True, bf16=False, report_to="none", max_steps=1, per_device_train_batch_size=2
    )
    trainer = TokenRewardTrainer(tiny.causal_lm(), args, train_dataset=dataset, processing_class=tiny.tokenizer())
    trainer.train()
    assert trainer.dropped["train"]["kept"] == 3


def test_people_and_models_make_one_data_set(tmp_path):
    class Echo(Editor):
        def __call__(self, requests, attempt):
            return [f"<edited>{request.replace('bad', 'good')}</edited>" for request in requests]

    dataset = annotated(tmp_path / "work")
    people = read_annotations(tmp_path / "work").save(tmp_path / "people")
    template = "{answer}<edited></edited>{prompt}{criteria}"
    model = edit_dataset(dataset, Echo({}), tmp_path / "model", template=template, limit=1, progress=False).dataset
    assert people.remove_columns(["annotator", "edit_ratio"]).features == model.features


def test_the_commands(tmp_path, capsys, monkeypatch):
    annotated(tmp_path / "work")
    monkeypatch.setenv("COLUMNS", "120")
    tiny.tokenizer().save_pretrained(tmp_path / "tokenizer")
    arguments = ["annotations", str(tmp_path / "work"), "--save", str(tmp_path / "edits")]
    assert cli.main([*arguments, "--tokenizer", str(tmp_path / "tokenizer")]) == 0
    output = capsys.readouterr().out
    assert "nothing_wrong" in output and "Krippendorff's alpha" in output and "ada and bob" in output
    assert f"3 edits are in {tmp_path / 'edits'}; see its README.md." in " ".join(output.split())
    assert "| tokens of their original answers |" in (tmp_path / "edits" / "README.md").read_text()
    assert cli.main(["annotations", str(tmp_path)]) == 2

    pairs("a").to_json(tmp_path / "pairs.jsonl")
    monkeypatch.delenv("TRL_TOKENREWARD_PASSWORD", raising=False)
    source = ["annotate", str(tmp_path / "pairs.jsonl"), str(tmp_path / "out")]
    assert cli.main([*source, "--host", "0.0.0.0"]) == 2
    assert "set TRL_TOKENREWARD_PASSWORD" in capsys.readouterr().err
    with opened(pairs("a"), tmp_path / "other") as store, serving(store) as url:
        assert cli.main([*source, "--port", url.rpartition(":")[2]]) == 2
    assert "cannot be listened on" in capsys.readouterr().err


def test_without_the_extra_the_error_says_what_to_install(tmp_path, monkeypatch, capsys):
    pairs("a").to_json(tmp_path / "pairs.jsonl")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "trl_tokenreward.annotation.server", raising=False)
    assert cli.main(["annotate", str(tmp_path / "pairs.jsonl"), str(tmp_path / "out")]) == 2
    assert "uvicorn is missing: pip install 'trl-tokenreward[annotate]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
