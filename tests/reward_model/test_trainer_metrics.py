"""Trainer metrics: a part of the tests of trainer."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from trl import RewardConfig, RewardTrainer

from reward_trainer_cases import ROWS, UNEVEN, training_logs
from tiny import causal_lm, sequence_classifier
from tiny import tokenizer as make_tokenizer
from trl_tokenreward import TokenRewardModel
from trl_tokenreward.data.formats import SIDES
from trl_tokenreward.reward_model.metrics import WeightedMeans, token_auroc


class TestMetrics:
    def evaluate_by_hand(self, trainer, dataset):
        accuracy, edited_in, edited_out, unchanged, wrong = [], [], [], [], []
        for row in dataset:
            scores = {}
            for side in SIDES:
                with torch.no_grad():
                    outputs = trainer.model(input_ids=torch.tensor([row[f"{side}_ids"]]))
                scores[side] = outputs.token_scores[0]
                masks = {name: torch.tensor(row[f"{side}_{name}_mask"]).bool() for name in ("edit", "completion")}
                unchanged.append(scores[side][masks["completion"] & ~masks["edit"]])
                (edited_in if side == "chosen" else edited_out).append(scores[side][masks["edit"]])
                if side == "rejected":
                    wrong.append(masks["edit"][masks["completion"]])
                    rejected = scores[side][masks["completion"]]
                    accuracy.append((edited_in[-1][:, None] > edited_out[-1]).float().flatten())
                    scores["all"] = rejected
            unchanged.append(torch.empty(0))
            wrong[-1] = (wrong[-1], scores["all"])
        labels, scores = (torch.cat(parts) for parts in zip(*wrong, strict=True))
        return {
            "token_accuracy": torch.cat(accuracy).mean().item(),
            "token_auroc": token_auroc(-scores, labels),
            "token_score/edited_in": torch.cat(edited_in).mean().item(),
            "token_score/edited_out": torch.cat(edited_out).mean().item(),
            "token_score/unchanged": torch.cat(unchanged).mean().item(),
        }

    def test_an_evaluation_is_of_the_whole_set(self, make_trainer):
        # 6 pairs in batches of 4 and 2: means of batch means would be others
        trainer = make_trainer(eval_dataset=Dataset.from_list(ROWS[3:9]))
        torch.nn.init.normal_(trainer.model.token_score.weight)
        for _ in range(2):  # nothing is left over from the one before
            metrics = trainer.evaluate()
            for key, value in self.evaluate_by_hand(trainer, trainer.eval_dataset).items():
                # tokens that are nearly tied may change places where the batch is another
                assert metrics[f"eval_{key}"] == pytest.approx(value, abs=5e-3), key
        assert metrics["eval_token_accuracy"] not in (0.0, 0.5, 1.0)

    @pytest.mark.parametrize("settings", [{}, {"token_loss": "ranking"}], ids=["classification", "ranking"])
    def test_an_evaluation_does_not_depend_on_its_batches(self, settings, make_trainer):
        outcomes = []
        for batch in (1, 4, 6):
            rows = Dataset.from_list([{**row, "margin": 0.1 * i} for i, row in enumerate(UNEVEN)])
            settings = {**settings, "center_rewards_coefficient": 0.1, "per_device_eval_batch_size": batch}
            trainer = make_trainer(eval_dataset=rows, **settings)
            torch.nn.init.normal_(trainer.model.token_score.weight, generator=torch.Generator().manual_seed(1))
            metrics = trainer.evaluate()
            # The least and the greatest reward are RewardTrainer's, which are means over batches.
            unlike = ("time", "second", "num_tokens", "min_reward", "max_reward")
            outcomes.append({key: value for key, value in metrics.items() if not key.endswith(unlike)})
            # One batch of all is what the loss itself says.
            batch = trainer.data_collator(list(trainer.eval_dataset))
            with torch.no_grad():
                assert metrics["eval_loss"] == pytest.approx(
                    trainer.compute_loss(trainer.model, batch).item(), abs=1e-5
                )
        assert len({"eval_loss", "eval_loss/token", "eval_accuracy", "eval_margin"} & set(outcomes[0])) == 4
        for outcome in outcomes[1:]:
            assert outcome == pytest.approx(outcomes[0], abs=1e-4)

    def test_a_prediction_leaves_nothing_behind(self, make_trainer):
        trainer = make_trainer(eval_dataset=Dataset.from_list(ROWS[3:9]))
        torch.nn.init.normal_(trainer.model.token_score.weight)
        first = trainer.evaluate()
        predictions = trainer.predict(trainer.train_dataset).predictions
        assert predictions.ndim == 2 and predictions.shape[1] == 1
        second = trainer.evaluate()
        assert {key: second[key] for key in first if not key.endswith(("time", "second"))} == {
            key: value for key, value in first.items() if not key.endswith(("time", "second"))
        }

    def test_an_untrained_token_head_is_undecided(self, make_trainer):
        metrics = make_trainer(eval_dataset=Dataset.from_list(ROWS)).evaluate()
        assert metrics["eval_token_accuracy"] == metrics["eval_token_auroc"] == 0.5
        assert metrics["eval_loss/token"] == pytest.approx(math.log(2), abs=1e-6)
        assert metrics["eval_token_score/edited_in"] == metrics["eval_token_score/unchanged"] == 0.0

    def test_training_logs(self, make_trainer):
        trainer = make_trainer(logging_steps=2)
        trainer.train()
        [log] = training_logs(trainer)
        assert set(log) == {
            *("loss", "grad_norm", "learning_rate", "epoch", "step", "num_tokens"),
            *("accuracy", "margin", "min_reward", "mean_reward", "max_reward"),
            *("loss/sequence", "loss/token", "loss/unchanged", "token_accuracy", "token_auroc"),
            *("token_score/edited_in", "token_score/edited_out", "token_score/unchanged"),
        }

    def test_a_step_of_several_batches_counts_every_row(self, make_trainer):
        # 5 pairs in batches of 4 and 1
        trainer = make_trainer(
            train_dataset=Dataset.from_list(ROWS[3:8]),
            gradient_accumulation_steps=2,
            max_steps=1,
            learning_rate=0.0,
            head_learning_rate=0.0,
        )
        torch.nn.init.normal_(trainer.model.token_score.weight)
        trainer.train()
        [log] = training_logs(trainer)
        trainer.model.eval()
        expected = self.evaluate_by_hand(trainer, trainer.train_dataset)
        for key in ("token_accuracy", "token_score/edited_in", "token_score/edited_out", "token_score/unchanged"):
            assert log[key] == pytest.approx(expected[key], abs=1e-3), key

    def test_several_evaluation_sets(self, make_trainer):
        sets = {
            "seen": Dataset.from_list(ROWS[:5]),
            "train": Dataset.from_list(ROWS[5:] + [{**ROWS[0], "chosen": "."}]),
        }
        trainer = make_trainer(eval_dataset=sets, eval_strategy="steps", eval_steps=2)
        torch.nn.init.normal_(trainer.model.token_score.weight)
        trainer.train()
        metrics = trainer.evaluate()
        for name, dataset in trainer.eval_dataset.items():
            expected = self.evaluate_by_hand(trainer, dataset)["token_auroc"]
            # tokens that are nearly tied may change places where the batch is another
            assert metrics[f"eval_{name}_token_auroc"] == pytest.approx(expected, abs=5e-3)
            assert f"eval_{name}_loss" in metrics and f"eval_{name}_accuracy" in metrics
        assert "eval_token_auroc" not in metrics
        assert metrics["eval_seen_token_auroc"] != metrics["eval_train_token_auroc"]
        assert set(trainer.dropped) == {"train", "eval_seen", "eval_train"}
        assert trainer.dropped["train"]["rows"] == 21 and trainer.dropped["eval_train"]["rows"] == 17

    def test_a_set_given_to_evaluate_is_prepared(self, make_trainer):
        trainer = make_trainer()
        rows = Dataset.from_list([*ROWS[:4], {**ROWS[0], "rejected": ROWS[0]["chosen"]}])
        assert "eval_token_auroc" in trainer.evaluate(rows)
        assert trainer.dropped["eval"] == {"rows": 5, "kept": 4, "identical": 1, "too_long": 0, "not_minimal": 0}
        assert "eval_a_token_auroc" in trainer.evaluate({"a": rows})
        # Each is prepared, and counted, once.
        assert trainer.dropped["eval"] == trainer.dropped["eval_a"]
        other = make_trainer()
        other.evaluate({"a": rows, "b": rows})
        assert set(other.dropped) == {"train", "eval_a", "eval_b"}

    def test_compute_metrics_gets_what_reward_trainer_gives(self, make_trainer):
        seen = {}

        def compute_metrics(prediction):
            seen["predictions"] = prediction.predictions
            return {"mean": float(prediction.predictions.mean())}

        arrays = []
        for arguments in ((RewardTrainer, RewardConfig), ()):
            trainer = make_trainer(
                sequence_classifier(), *arguments, eval_dataset=Dataset.from_list(ROWS), compute_metrics=compute_metrics
            )
            assert "eval_mean" in trainer.evaluate()
            arrays.append(torch.tensor(seen["predictions"]))
        assert torch.allclose(*arrays, atol=1e-5)

    @pytest.mark.timeout(300)
    @pytest.mark.slow
    def test_two_processes_measure_the_same_as_one(self, make_trainer, tmp_path):
        # 7 pairs: the last batch is filled up with pairs that must not be counted twice
        model = TokenRewardModel.from_backbone(causal_lm())
        torch.nn.init.normal_(model.token_score.weight, generator=torch.Generator().manual_seed(1))
        model.save_pretrained(tmp_path / "model")
        make_tokenizer("bpe").save_pretrained(tmp_path / "model")
        rows = ROWS[5:11] + [{"prompt": "a", "chosen": " the lazy dog", "rejected": " the quick brown fox jumps"}]
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        script = tmp_path / "evaluate.py"
        script.write_text(
            "import json, sys\n"
            "from datasets import Dataset\n"
            "from trl_tokenreward import TokenRewardConfig, TokenRewardTrainer\n"
            "folder = sys.argv[1]\n"
            "dataset = Dataset.from_list(json.load(open(folder + '/rows.json')))\n"
            "args = TokenRewardConfig(folder + '/out', use_cpu=True, bf16=False, report_to='none',\n"
            "                         per_device_eval_batch_size=2)\n"
            "trainer = TokenRewardTrainer(folder + '/model', args, train_dataset=dataset, eval_dataset=dataset)\n"
            "metrics = trainer.evaluate()\n"
            "assert trainer.accelerator.num_processes == 2\n"
            "if trainer.is_world_process_zero():\n"
            "    json.dump(metrics, open(folder + '/metrics.json', 'w'))\n"
        )
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
        run = subprocess.run(
            [*launch, str(script), str(tmp_path)], capture_output=True, text=True, env=environment, timeout=280
        )
        assert run.returncode == 0, run.stderr[-3000:]
        together = json.loads((tmp_path / "metrics.json").read_text())

        dataset = Dataset.from_list(rows)
        alone = make_trainer(model, eval_dataset=dataset).evaluate()
        keys = [key for key in alone if key.startswith(("eval_token_", "eval_token_score/", "eval_loss"))]
        assert len(keys) == 9
        keys += ["eval_accuracy", "eval_margin", "eval_mean_reward"]
        for key in keys:
            assert together[key] == pytest.approx(alone[key], abs=1e-5), key


@pytest.mark.any_trl
def test_means_over_less_than_one_token_by_its_weight():
    means = WeightedMeans()
    means.add("loss/token", 2.0, 0.125)
    means.add("loss/token", 1.0, 0.375)
    means.add("loss/unchanged", 0.0, 0.0)
    assert means.means() == {"loss/token": 1.25, "loss/unchanged": 0.0}
