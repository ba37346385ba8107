import copy
import json
import logging
import math
import os
import random
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import HfArgumentParser
from trl import RewardConfig, RewardTrainer

from tiny import causal_lm, sequence_classifier
from tiny import tokenizer as make_tokenizer
from trl_tokenreward import TokenRewardConfig, TokenRewardModel, TokenRewardTrainer
from trl_tokenreward.data import SIDES, DataCollatorForTokenReward
from trl_tokenreward.reward_losses import sequence_ranking_loss, token_auroc


WORDS = ["terrific", "lousy", "good", "lazy", "quick", "standard", "brown"]
ROWS = [
    {"prompt": "Human: how was it?", "chosen": f" This movie was {one}.", "rejected": f" This movie was {other}."}
    for i, one in enumerate(WORDS)
    for other in WORDS[:i]
]  # 21 pairs


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer("bpe")


@pytest.fixture
def make_trainer(tmp_path, tokenizer):
    """A trainer of a tiny model on `ROWS`; keyword arguments that the trainer does not know are the configuration's."""

    def make(model=None, trainer_class=TokenRewardTrainer, config_class=TokenRewardConfig, **kwargs):
        settings = {
            "output_dir": str(tmp_path / "out"),
            "per_device_train_batch_size": 4,
            "per_device_eval_batch_size": 4,
            "max_steps": 2,
            "logging_steps": 1,
            "learning_rate": 1e-3,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
        }
        trainer = {"train_dataset": Dataset.from_list(ROWS), "processing_class": tokenizer}
        names = {field.name for field in fields(config_class)}
        settings.update({key: value for key, value in kwargs.items() if key in names})
        trainer.update({key: value for key, value in kwargs.items() if key not in names})
        return trainer_class(causal_lm() if model is None else model, config_class(**settings), **trainer)

    return make


def training_logs(trainer):
    return [log for log in trainer.state.log_history if "loss" in log]


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


class TestConfig:
    def make(self, **kwargs):
        return TokenRewardConfig("out", use_cpu=True, bf16=False, **kwargs)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"max_edit_ratio": 0.0}, "`max_edit_ratio` is a share"),
            ({"max_edit_ratio": 1.5}, "`max_edit_ratio` is a share"),
            ({"token_loss_weight": -1.0}, "`token_loss_weight` must be a finite number"),
            ({"sequence_loss_weight": math.inf}, "`sequence_loss_weight` must be a finite number"),
            ({"unchanged_token_weight": math.nan}, "`unchanged_token_weight` must be a finite number"),
            ({"token_loss": "hinge"}, "'classification' or 'ranking', not 'hinge'"),
            ({"token_loss": "ranking", "edit_aggregation": "max"}, "'mean' or 'sum', not 'max'"),
            ({"edit_aggregation": "mean"}, "`edit_aggregation` has no effect with `token_loss='classification'`"),
            ({"sequence_loss_weight": 0, "token_loss_weight": 0}, "both 0: there is nothing to train on"),
            ({"sequence_loss_weight": 0, "center_rewards_coefficient": 0.01}, "`center_rewards_coefficient` is part"),
            ({"token_loss_weight": 0, "use_anchors": True}, "`use_anchors` is part of the token loss"),
            ({"token_loss_weight": 0, "unchanged_token_weight": 0.5}, "`unchanged_token_weight` is part of the token"),
            (
                {"token_loss_weight": 0, "unchanged_token_target": "zero"},
                "`unchanged_token_target` is part of the token",
            ),
            ({"unchanged_token_weight": 0, "unchanged_token_target": "zero"}, "`unchanged_token_target` has no effect"),
            ({"unchanged_token_target": "one"}, "must be 'right' or 'zero', not 'one'"),
            ({"token_loss_weight": 0, "token_loss": "ranking"}, "`token_loss` is part of the token loss"),
        ],
    )
    def test_bad_values(self, settings, message):
        with pytest.raises(ValueError, match=message):
            self.make(**settings)

    def test_the_command_line(self):
        arguments = "--output_dir out --use_cpu --bf16 false --token_loss ranking --edit_aggregation sum --use_anchors"
        [config] = HfArgumentParser(TokenRewardConfig).parse_args_into_dataclasses(
            [*arguments.split(), "--max_edit_ratio", "0.4", "--unchanged_token_weight", "0"]
        )
        assert (config.token_loss, config.edit_aggregation, config.use_anchors) == ("ranking", "sum", True)
        assert (config.max_edit_ratio, config.unchanged_token_weight, config.sequence_loss_weight) == (0.4, 0.0, 1.0)

    def test_every_field_has_help_and_a_line_in_the_docstring(self):
        own = [field for field in fields(TokenRewardConfig) if field.name not in {f.name for f in fields(RewardConfig)}]
        assert len(own) == 9
        for field in own:
            assert field.metadata["help"]
            assert re.search(rf"^        {field.name} \(`.*\):$", TokenRewardConfig.__doc__, re.MULTILINE)


class TestModels:
    def test_a_path(self, make_trainer, tokenizer, tmp_path, caplog):
        causal_lm().save_pretrained(tmp_path / "lm")
        tokenizer.save_pretrained(tmp_path / "lm")
        with caplog.at_level(logging.WARNING):
            trainer = make_trainer(
                str(tmp_path / "lm"), processing_class=None, model_init_kwargs={"attn_implementation": "eager"}
            )
        assert "will be ignored" not in caplog.text
        assert isinstance(trainer.model, TokenRewardModel) and trainer.model.dtype == torch.float32
        assert trainer.model.model.config._attn_implementation == "eager"
        assert trainer.args.model_init_kwargs == {"attn_implementation": "eager"}
        assert trainer.processing_class.get_vocab() == tokenizer.get_vocab()
        trainer.train()
        assert trainer.model.token_head_is_trained

    def test_a_path_in_another_dtype(self, make_trainer, tmp_path):
        causal_lm().save_pretrained(tmp_path / "lm")
        args = {"model_init_kwargs": {"dtype": "bfloat16"}}
        assert make_trainer(str(tmp_path / "lm"), **args).model.dtype == torch.bfloat16

    def test_the_callers_arguments_are_not_written_to(self, tokenizer, tmp_path):
        causal_lm().save_pretrained(tmp_path / "lm")
        args = TokenRewardConfig(
            str(tmp_path), use_cpu=True, bf16=False, report_to="none", model_init_kwargs={"dtype": "float32"}
        )
        before = copy.deepcopy(args.to_dict())
        TokenRewardTrainer(
            str(tmp_path / "lm"), args, train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer
        )
        assert args.to_dict() == before

    @pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gpt_neox"])
    def test_every_family_with_margins(self, family, make_trainer):
        rows = Dataset.from_list([{**row, "margin": 0.5} for row in ROWS])
        trainer = make_trainer(causal_lm(family), train_dataset=rows)
        trainer.train()
        assert all(math.isfinite(log["loss"]) for log in training_logs(trainer))

    def test_a_causal_lm_in_memory_is_trained_in_place(self, make_trainer):
        model = causal_lm()
        trainer = make_trainer(model)
        assert trainer.model.model is model.model

    def test_a_reward_model_keeps_its_head(self, make_trainer):
        model = sequence_classifier()
        assert make_trainer(model).model.score.weight is model.score.weight

    def test_a_token_reward_model_is_taken_as_it_is(self, make_trainer):
        model = TokenRewardModel.from_backbone(causal_lm())
        assert make_trainer(model).model is model

    def test_new_heads_depend_on_the_seed_alone(self, make_trainer):
        first, second, third = (make_trainer(seed=seed).model.score.weight for seed in (3, 3, 4))
        assert torch.equal(first, second) and not torch.equal(first, third)

    def test_no_arguments(self, tokenizer, tmp_path, monkeypatch):
        class OnCPU(TokenRewardConfig):
            def __init__(self, *args):
                super().__init__(*args, use_cpu=True, bf16=False)

        monkeypatch.setattr("trl_tokenreward.reward_trainer.TokenRewardConfig", OnCPU)
        monkeypatch.chdir(tmp_path)
        causal_lm().save_pretrained("models/lm")
        trainer = TokenRewardTrainer("models/lm", train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer)
        assert trainer.args.output_dir == "lm-TokenReward" and trainer.args.token_loss == "classification"

    def test_what_is_refused(self, make_trainer, tmp_path):
        with pytest.raises(TypeError, match="`args` must be a `TokenRewardConfig`, got RewardConfig"):
            make_trainer(config_class=RewardConfig)
        with pytest.raises(TypeError, match="PreTrainedModel"):
            make_trainer(torch.nn.Linear(1, 1))
        with pytest.raises(ValueError, match="`quantization_config` is given twice"):
            make_trainer(str(tmp_path), model_init_kwargs={"quantization_config": {}}, quantization_config={})


class TestLoss:
    def test_without_the_token_loss_it_is_reward_trainer(self, make_trainer):
        rows = Dataset.from_list([{**row, "margin": 0.1 * i} for i, row in enumerate(ROWS)])
        settings = {"train_dataset": rows, "eval_dataset": rows, "max_steps": 6, "center_rewards_coefficient": 0.01}
        theirs = make_trainer(sequence_classifier(), RewardTrainer, RewardConfig, **settings)
        ours = make_trainer(sequence_classifier(), token_loss_weight=0, head_learning_rate=1e-3, **settings)
        for trainer in (theirs, ours):
            trainer.train()
            trainer.evaluate()
        assert len(theirs.state.log_history) == len(ours.state.log_history) == 8
        for their_log, our_log in zip(theirs.state.log_history, ours.state.log_history, strict=True):
            for key, value in their_log.items():
                if not key.endswith(("runtime", "per_second", "total_flos")):
                    assert our_log[key] == pytest.approx(value, abs=1e-5), key
        assert not ours.model.token_head_is_trained

    @pytest.mark.parametrize(
        "settings",
        [
            {"token_loss": "classification"},
            {"token_loss": "ranking"},
            {"token_loss": "ranking", "edit_aggregation": "sum"},
            {"unchanged_token_target": "zero"},
        ],
    )
    @pytest.mark.parametrize("use_anchors", [False, True])
    def test_the_parts_add_up(self, settings, use_anchors, make_trainer):
        """Worked out pair by pair and token by token, with no padding to go wrong."""
        rows = [*ROWS[:3], {"prompt": "a", "chosen": " This good movie was.", "rejected": " This movie was."}]
        weighting = {"sequence_loss_weight": 0.5, "token_loss_weight": 2.0, "unchanged_token_weight": 0.25}
        trainer = make_trainer(train_dataset=Dataset.from_list(rows), use_anchors=use_anchors, **weighting, **settings)
        torch.nn.init.normal_(trainer.model.token_score.weight)
        trainer.model.train()
        loss = trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset)))

        sequence, ranked, classified, unchanged = [], [], [], []
        for row in trainer.train_dataset:
            rewards, aggregates = [], []
            for side in SIDES:
                with torch.no_grad():
                    outputs = trainer.model(input_ids=torch.tensor([row[f"{side}_ids"]]))
                rewards.append(outputs.logits.item())
                edited = []
                for place, score in enumerate(outputs.token_scores[0].tolist()):
                    if row[f"{side}_edit_mask"][place] or use_anchors and row[f"{side}_anchor_mask"][place]:
                        edited.append(score)
                        classified.append(math.log1p(math.exp(-score if side == "chosen" else score)))
                    elif row[f"{side}_completion_mask"][place]:
                        toward_zero = settings.get("unchanged_token_target") == "zero"
                        unchanged.append(score**2 if toward_zero else math.log1p(math.exp(-score)))
                total = sum(edited)
                aggregates.append(total if settings.get("edit_aggregation") == "sum" else total / max(len(edited), 1))
            sequence.append(math.log1p(math.exp(rewards[1] - rewards[0])))
            ranked.append(math.log1p(math.exp(aggregates[1] - aggregates[0])))
        token = ranked if settings.get("token_loss") == "ranking" else classified
        sequence, token, unchanged = (sum(values) / len(values) for values in (sequence, token, unchanged))
        assert loss.item() == pytest.approx(0.5 * sequence + 2.0 * (token + 0.25 * unchanged), rel=1e-4)

        trainer.log({})
        logged = trainer.state.log_history[-1]
        assert logged["loss/sequence"] == pytest.approx(sequence, rel=1e-4)
        assert logged["loss/token"] == pytest.approx(token, rel=1e-4)
        assert logged["loss/unchanged"] == pytest.approx(unchanged, rel=1e-4)

    def test_the_sequence_loss_is_the_documented_one(self, make_trainer):
        rows = [{**row, "margin": 0.5 * i} for i, row in enumerate(ROWS[:4])]
        trainer = make_trainer(train_dataset=Dataset.from_list(rows), token_loss_weight=0)
        batch = trainer.data_collator(list(trainer.train_dataset))
        loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
        expected = sequence_ranking_loss(*outputs.logits[:, 0].chunk(2), batch["margin"])
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)

    def test_rows_without_edits_train_the_sequence_score_alone(self, make_trainer):
        masks = {f"{side}_edit_mask": [0, 0] for side in SIDES}
        rows = [{"chosen_ids": [5, i], "rejected_ids": [6, i], **masks} for i in range(7, 15)]
        trainer = make_trainer(train_dataset=Dataset.from_list(rows))
        trainer.train()
        for log in training_logs(trainer):
            assert math.isfinite(log["loss"]) and log["loss/token"] == 0.0
            assert "token_accuracy" not in log and "token_auroc" not in log and "token_score/edited_in" not in log

    def test_every_parameter_has_a_gradient_whatever_the_weights(self, make_trainer):
        """Distributed training waits for those that have none."""
        for weighting in ({"token_loss_weight": 0}, {"sequence_loss_weight": 0}, {"unchanged_token_weight": 0}):
            trainer = make_trainer(**weighting)
            trainer.model.train()
            trainer.compute_loss(trainer.model, trainer.data_collator(list(trainer.train_dataset)[:4])).backward()
            assert all(p.grad is not None for p in trainer.model.parameters())

    def test_a_batch_without_masks_is_refused(self, make_trainer):
        trainer = make_trainer(data_collator=lambda rows: {"input_ids": torch.ones(2, 3), "attention_mask": 1})
        with pytest.raises(ValueError, match="The batch has no `edit_mask`"):
            trainer.train()


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
        assert set(trainer.left_out) == {"train", "eval_seen", "eval_train"}
        assert trainer.left_out["train"]["rows"] == 21 and trainer.left_out["eval_train"]["rows"] == 17

    def test_a_set_given_to_evaluate_is_prepared(self, make_trainer):
        trainer = make_trainer()
        rows = Dataset.from_list([*ROWS[:4], {**ROWS[0], "rejected": ROWS[0]["chosen"]}])
        assert "eval_token_auroc" in trainer.evaluate(rows)
        assert trainer.left_out["eval"] == {"rows": 5, "kept": 4, "identical": 1, "too_long": 0, "not_minimal": 0}
        assert "eval_a_token_auroc" in trainer.evaluate({"a": rows})

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
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        run = subprocess.run(
            [*launch, str(script), str(tmp_path)], capture_output=True, text=True, env=environment, timeout=280
        )
        assert run.returncode == 0, run.stderr[-3000:]
        together = json.loads((tmp_path / "metrics.json").read_text())

        dataset = Dataset.from_list(rows)
        alone = make_trainer(model, eval_dataset=dataset).evaluate()
        keys = [key for key in alone if key.startswith(("eval_token_", "eval_token_score/"))]
        assert len(keys) == 5
        for key in keys:
            assert together[key] == pytest.approx(alone[key], abs=1e-5), key


def stream(rows):
    return IterableDataset.from_generator(lambda: iter(rows))


IDENTICAL = {**ROWS[0], "rejected": ROWS[0]["chosen"]}
LONG = {**ROWS[0], "chosen": " terrific" * 40}
OTHER = {**ROWS[0], "chosen": " no", "rejected": " the lazy dog"}


class TestDataSets:
    def test_what_is_left_out_is_reported(self, make_trainer, caplog):
        rows = Dataset.from_list([*ROWS[:8], IDENTICAL, LONG, OTHER, OTHER])
        with caplog.at_level(logging.WARNING):
            trainer = make_trainer(train_dataset=rows, max_length=100, max_edit_ratio=0.7)
        counts = {"rows": 12, "kept": 8, "identical": 1, "too_long": 1, "not_minimal": 2}
        assert trainer.left_out == {"train": counts} and len(trainer.train_dataset) == 8
        assert "Data set train: 8 of 12 rows are kept (1 identical, 1 too_long, 2 not_minimal)." in caplog.text

    def test_nothing_is_reported_where_nothing_is_left_out(self, make_trainer, caplog):
        with caplog.at_level(logging.WARNING):
            make_trainer()
        assert "rows are kept" not in caplog.text

    def test_nothing_left(self, make_trainer):
        with pytest.raises(ValueError, match="Nothing is left of the train data set.*raise `max_length`"):
            make_trainer(max_length=3)
        with pytest.raises(ValueError, match="Nothing is left of the eval data set.*raise `max_edit_ratio`"):
            make_trainer(eval_dataset=Dataset.from_list([OTHER]), max_edit_ratio=0.5)

    def test_a_malformed_row_is_named(self, make_trainer):
        with pytest.raises(ValueError, match="Row 3 of the train data set, column `rejected`: must be a text"):
            make_trainer(train_dataset=Dataset.from_list([*ROWS[:3], {**ROWS[0], "rejected": None}]))

    @pytest.mark.parametrize("workers", [0, 2])
    def test_streaming(self, workers, make_trainer, caplog):
        rows = [*ROWS, IDENTICAL, LONG]
        trainer = make_trainer(
            train_dataset=Dataset.from_list(rows).to_iterable_dataset(num_shards=2),
            eval_dataset=stream([*ROWS[:4], OTHER]),
            eval_strategy="steps",
            eval_steps=7,
            max_steps=7,
            max_length=100,
            max_edit_ratio=0.7,
            dataloader_num_workers=workers,
        )
        assert trainer.left_out["train"]["rows"] == 0
        with caplog.at_level(logging.WARNING):
            trainer.train()
        counts = trainer.left_out["train"]
        # at least one whole pass of 21 kept pairs went into the 7 batches of 4
        assert counts["kept"] >= 21 and counts["identical"] >= 1 and counts["too_long"] >= 1
        last = training_logs(trainer)[-1]
        assert last["left_out/identical"] >= 1 and last["left_out/not_minimal"] == 0
        evaluation = next(log for log in trainer.state.log_history if "eval_loss" in log)
        assert evaluation["eval_left_out/not_minimal"] >= 1 and "eval_token_auroc" in evaluation
        assert re.search(
            r"Data set train: \d+ of \d+ rows are kept \([1-9]\d* identical, [1-9]\d* too_long", caplog.text
        )

    def test_a_stream_trains_as_its_table_does(self, make_trainer):
        runs = []
        for dataset in (Dataset.from_list(ROWS), Dataset.from_list(ROWS).to_iterable_dataset()):
            trainer = make_trainer(train_dataset=dataset, max_steps=4, train_sampling_strategy="sequential")
            trainer.train()
            runs.append([log["loss"] for log in training_logs(trainer)])
        assert runs[0] == runs[1]

    def test_a_stream_of_which_nothing_is_left(self, make_trainer):
        trainer = make_trainer(train_dataset=stream(ROWS), max_length=3)
        with pytest.raises(ValueError, match=r"Nothing is left of the train data set: 0 of 21 rows.*21 too_long"):
            trainer.train()
        trainer = make_trainer(eval_dataset=stream([OTHER]), max_edit_ratio=0.5)
        with pytest.raises(ValueError, match="Nothing is left of the eval data set: 0 of 1 rows"):
            trainer.evaluate()

    def test_columns_that_are_not_removed_do_no_harm(self, make_trainer):
        rows = Dataset.from_list([{**row, "source": "web"} for row in ROWS])
        trainer = make_trainer(train_dataset=rows, remove_unused_columns=False)
        trainer.train()
        assert trainer.train_dataset["source"][0] == "web" and len(training_logs(trainer)) == 2

    def test_the_collator_pads_with_the_pad_token_of_the_trainer(self, make_trainer, tokenizer):
        trainer = make_trainer(pad_to_multiple_of=16)
        assert trainer.data_collator == DataCollatorForTokenReward(tokenizer.pad_token_id, pad_to_multiple_of=16)

    def test_a_collator_of_ones_own(self, make_trainer, tokenizer):
        collator = DataCollatorForTokenReward(tokenizer.eos_token_id)
        trainer = make_trainer(data_collator=collator)
        trainer.train()
        assert trainer.data_collator is collator


class TestCheckpoints:
    @pytest.mark.parametrize("streaming", [False, True])
    def test_resuming_is_exact(self, streaming, make_trainer, tmp_path):
        def make(**kwargs):
            dataset = Dataset.from_list(ROWS)
            return make_trainer(
                train_dataset=dataset.to_iterable_dataset() if streaming else dataset,
                save_strategy="steps",
                save_steps=3,
                max_steps=7,
                gradient_accumulation_steps=2,
                **kwargs,
            )

        whole = make(output_dir=str(tmp_path / "whole"))
        whole.train()
        resumed = make(model=causal_lm(seed=5), output_dir=str(tmp_path / "resumed"))
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
        assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())
        ours, theirs = ({log["step"]: log for log in training_logs(trainer)} for trainer in (resumed, whole))
        assert list(theirs) == list(ours) == [1, 2, 3, 4, 5, 6, 7]
        for step in theirs:
            skipped = {"num_tokens", *(key for key in theirs[step] if key.startswith("left_out/"))}
            assert {k: v for k, v in ours[step].items() if k not in skipped} == {
                k: v for k, v in theirs[step].items() if k not in skipped
            }

    def test_a_saved_model_scores_as_before(self, make_trainer, tmp_path):
        trainer = make_trainer(max_steps=4)
        trainer.train()
        trainer.save_model(str(tmp_path / "saved"))
        model = TokenRewardModel.from_pretrained(tmp_path / "saved")
        ids = torch.tensor([[5, 6, 7, 8]])
        expected = trainer.model.eval()(input_ids=ids)
        assert torch.equal(model(input_ids=ids).token_scores, expected.token_scores)
        assert torch.equal(model(input_ids=ids).logits, expected.logits)
        assert model.token_head_is_trained

    @pytest.mark.parametrize("lora", [False, True])
    def test_the_model_card(self, lora, make_trainer, tmp_path, capsys):
        extra = {"peft_config": pytest.importorskip("peft").LoraConfig(target_modules="all-linear")} if lora else {}
        causal_lm().save_pretrained(tmp_path / "lm")
        trainer = make_trainer(str(tmp_path / "lm"), save_strategy="steps", save_steps=2, **extra)
        trainer.train()
        card = (tmp_path / "out" / "README.md").read_text("utf-8")
        assert "Aligning Large Language Models via Fine-grained Supervision" in card
        assert "@inproceedings{xu2024aligning," in card and "huggingface.co/papers/2406.02756" in card
        assert "Token Reward" in card and "- token-reward-trainer" in card and "pipeline(" not in card
        trainer.model.set_adapter("default") if lora else None
        trainer.save_model()
        # The example on the card runs, and says what the trained model says.
        [example] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
        namespace = {}
        exec(example.replace('"out"', repr(str(tmp_path / "out"))), namespace)
        scores = trainer.model.score_texts([" Paris."], trainer.processing_class, ["The capital of France is"])[0]
        assert namespace["scores"].token_scores == pytest.approx(scores.token_scores, abs=1e-6)
        assert str(scores.score)[:5] in capsys.readouterr().out


class TestPeft:
    @pytest.fixture
    def peft(self):
        return pytest.importorskip("peft")

    @pytest.mark.parametrize("task_type", [None, "SEQ_CLS", "TOKEN_CLS"])
    @pytest.mark.parametrize("target_modules", [None, ["q_proj", "v_proj"], "all-linear"])
    def test_adapter_and_heads_are_trained(self, task_type, target_modules, peft, make_trainer, tmp_path, caplog):
        config = peft.LoraConfig(r=4, target_modules=target_modules, task_type=task_type)
        before = copy.deepcopy(config.to_dict())
        backbone = causal_lm()
        with caplog.at_level(logging.WARNING):
            trainer = make_trainer(TokenRewardModel.from_backbone(backbone), peft_config=config, max_steps=4)
        assert config.to_dict() == before
        assert "Added the heads ['score', 'token_score'] to PEFT's `modules_to_save`" in caplog.text
        trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
        assert all("lora_" in name or "modules_to_save" in name for name in trained)
        assert {"score", "token_score"} <= {part for name in trained for part in name.split(".")}
        start = weights(trainer)
        trainer.train()
        end = weights(trainer)
        changed = {name for name in start if not torch.equal(start[name], end[name])}
        assert changed <= trained and {n for n in trained if "modules_to_save" in n} <= changed
        assert any("lora_B" in name for name in changed)

        trainer.save_model(str(tmp_path / "adapter"))
        loaded = peft.PeftModel.from_pretrained(TokenRewardModel.from_backbone(backbone), tmp_path / "adapter")
        ids = torch.tensor([[5, 6, 7, 8]])
        expected, outputs = trainer.model.eval()(input_ids=ids), loaded(input_ids=ids)
        assert torch.allclose(outputs.token_scores, expected.token_scores, atol=1e-6)
        assert torch.allclose(outputs.logits, expected.logits, atol=1e-6)
        assert expected.token_scores.any()

    def test_heads_that_are_named_already_are_not_repeated(self, peft, make_trainer, caplog):
        config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["score", "token_score", "embed_tokens"])
        with caplog.at_level(logging.WARNING):
            trainer = make_trainer(peft_config=config)
        assert "Added the heads" not in caplog.text
        assert set(trainer.model.peft_config["default"].modules_to_save) == {"score", "token_score", "embed_tokens"}

    def test_a_peft_model(self, peft, make_trainer):
        config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["score", "token_score"])
        model = peft.get_peft_model(TokenRewardModel.from_backbone(causal_lm()), config)
        trainer = make_trainer(model)
        trainer.train()
        assert trainer.model is model and model.get_base_model().token_score.modules_to_save["default"].weight.any()

    def test_what_is_refused(self, peft, make_trainer):
        frozen = peft.get_peft_model(
            TokenRewardModel.from_backbone(causal_lm()), peft.LoraConfig(target_modules=["q_proj"])
        )
        with pytest.raises(ValueError, match="The token head is untrained and frozen"):
            make_trainer(frozen)
        assert make_trainer(frozen, token_loss_weight=0)
        with pytest.raises(TypeError, match="around a LlamaForCausalLM, but must be around a `TokenRewardModel`"):
            make_trainer(peft.get_peft_model(causal_lm(), peft.LoraConfig(target_modules=["q_proj"])))
        with pytest.raises(ValueError, match="TrainableTokensConfig trains no modules in full"):
            make_trainer(peft_config=peft.TrainableTokensConfig(token_indices=[5]))


COLOURS = {
    **{"sky": "blue", "grass": "green", "snow": "white", "coal": "black"},
    **{"blood": "red", "sun": "yellow", "mouse": "grey", "rose": "pink"},
}
FRAMES = [
    *("I think the {} is {} today", "so the {} was {} again", "they say the {} is {} here"),
    *("my {} looks {} to me", "the {} seems {} now", "that {} was {} before"),
]


class TestLearning:
    @pytest.mark.parametrize("target", ["right", "zero"])
    def test_wrong_words_are_found_where_only_their_context_tells_them(self, make_trainer, target):
        """Every colour is right for one noun and wrong for the others, so no word is wrong by itself."""
        pairs = [
            {"prompt": "Say:", "chosen": " " + frame.format(noun, right), "rejected": " " + frame.format(noun, wrong)}
            for frame in FRAMES
            for noun, right in COLOURS.items()
            for wrong in COLOURS.values()
            if wrong != right
        ]
        random.Random(0).shuffle(pairs)
        tokenizer = make_tokenizer("bpe", vocab_size=400, corpus=[pair[side] for pair in pairs for side in SIDES])
        trainer = make_trainer(
            causal_lm(vocab_size=400, hidden_size=32, intermediate_size=64, num_key_value_heads=2),
            processing_class=tokenizer,
            train_dataset=Dataset.from_list(pairs[84:]),
            eval_dataset=Dataset.from_list(pairs[:84]),
            per_device_train_batch_size=16,
            per_device_eval_batch_size=42,
            max_steps=300,
            warmup_steps=20,
            learning_rate=3e-3,
            gradient_checkpointing=False,
            unchanged_token_target=target,
        )
        before = trainer.evaluate()
        assert before["eval_token_auroc"] == 0.5 and 0.3 < before["eval_accuracy"] < 0.7
        trainer.train()
        after = trainer.evaluate()
        assert after["eval_accuracy"] >= 0.95
        assert after["eval_token_auroc"] >= 0.9
        assert after["eval_token_accuracy"] >= 0.95
        assert after["eval_token_score/edited_in"] > 1 > -1 > after["eval_token_score/edited_out"]
        if target == "right":
            assert after["eval_token_score/unchanged"] > 1
        else:
            assert abs(after["eval_token_score/unchanged"]) < 0.3
