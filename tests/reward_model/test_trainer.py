import copy
import json
import logging
import math
import re
from dataclasses import fields

import pytest
import torch
from datasets import Dataset
from torch.nn.utils import parameters_to_vector
from transformers import HfArgumentParser
from trl import RewardConfig, RewardTrainer

import processes
from reward_trainer_cases import ROWS, UNEVEN, training_logs
from tiny import causal_lm, sequence_classifier
from tiny import tokenizer as make_tokenizer
from trl_tokenreward import TokenRewardConfig, TokenRewardModel, TokenRewardTrainer
from trl_tokenreward.data.formats import SIDES
from trl_tokenreward.reward_model.losses import sequence_ranking_loss


class TestConfig:
    def make(self, **kwargs):
        return TokenRewardConfig("out", use_cpu=True, bf16=False, **kwargs)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"max_edit_ratio": 0.0}, "`max_edit_ratio` must be above 0 and at most 1"),
            ({"max_edit_ratio": 1.5}, "`max_edit_ratio` must be above 0 and at most 1"),
            ({"token_loss_weight": -1.0}, "`token_loss_weight` must be a finite number"),
            ({"sequence_loss_weight": math.inf}, "`sequence_loss_weight` must be a finite number"),
            ({"unchanged_token_weight": math.inf}, "`unchanged_token_weight` must be a finite number"),
            ({"unchanged_token_weight": math.nan}, "`unchanged_token_weight` is NaN"),
            ({"learning_rate": math.nan}, "`learning_rate` is NaN"),
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

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"head_learning_rate": "3e-3"}, "`head_learning_rate` must be a number, but is '3e-3'"),
            ({"max_length": "128"}, "`max_length` must be a whole number, but is '128'"),
            ({"learning_rate": "1e-4"}, "`learning_rate` must be a number, but is '1e-4'"),
            ({"use_anchors": "yes"}, "`use_anchors` must be `True` or `False`, but is 'yes'"),
        ],
    )
    def test_values_of_another_type(self, settings, message):
        with pytest.raises(TypeError, match=message):
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

    def test_a_model_in_bfloat16(self, make_trainer, caplog):
        make_trainer(causal_lm().to(torch.bfloat16))
        assert caplog.text.count("Weights of `model` are trained in bfloat16") == 1

    def test_the_heads_beside_an_adapter_are_trained_in_float32(self, make_trainer, caplog):
        lora = pytest.importorskip("peft").LoraConfig(target_modules=["q_proj"])
        trainer = make_trainer(causal_lm().to(torch.bfloat16), peft_config=lora)
        trained = {name: p.dtype for name, p in trainer.model.named_parameters() if p.requires_grad}
        assert len([name for name in trained if "score" in name]) == 3 and {*trained.values()} == {torch.float32}
        assert "are trained in" not in caplog.text
        trainer.train()

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

        monkeypatch.setattr("trl_tokenreward.reward_model.trainer.TokenRewardConfig", OnCPU)
        monkeypatch.chdir(tmp_path)
        causal_lm().save_pretrained("models/lm")
        trainer = TokenRewardTrainer("models/lm", train_dataset=Dataset.from_list(ROWS), processing_class=tokenizer)
        assert trainer.args.output_dir == "lm-TokenReward" and trainer.args.token_loss == "classification"

    def test_tokens_without_an_embedding_are_named_before_the_run(self, make_trainer):
        tokenizer = make_tokenizer("bpe", pad_token=None)
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        arguments = {"model": causal_lm(vocab_size=tokenizer.pad_token_id), "processing_class": tokenizer}
        with pytest.raises(ValueError, match=r"none for the pad token '\[PAD\]'"):
            make_trainer(**arguments)
        arguments["model"].resize_token_embeddings(len(tokenizer))
        make_trainer(**arguments).train()
        tokenizer.pad_token = tokenizer.eos_token
        make_trainer(**{**arguments, "model": causal_lm(vocab_size=len(tokenizer) - 1)}).train()

        rows = [{"chosen_ids": [5, 6], "rejected_ids": [5, 7]}, {"chosen_ids": [5, 6], "rejected_ids": [5, 300]}]
        message = "Row 1 of the prepared eval data set has the token id 300 in `rejected_ids`"
        tokenizer = make_tokenizer("bpe")
        tokenizer.add_tokens(["[NEW]"])
        arguments = {"model": causal_lm(vocab_size=300), "processing_class": tokenizer}
        with pytest.raises(ValueError, match=message):
            make_trainer(**arguments, eval_dataset=Dataset.from_list(rows))
        trainer = make_trainer(**arguments, eval_dataset=Dataset.from_list(rows).to_iterable_dataset())
        with pytest.raises(ValueError, match=message):
            trainer.evaluate()

    def test_an_optimizer_without_the_token_head(self, make_trainer):
        def make(model, of):
            return make_trainer(model, optimizers=(torch.optim.SGD(of.parameters(), lr=0.1), None))

        model = causal_lm()
        with pytest.raises(ValueError, match="the optimizer in `optimizers` lacks token_score.weight"):
            make(model, of=model)
        model = TokenRewardModel.from_backbone(causal_lm())
        trainer = make(model, of=model)
        trainer.train()
        assert trainer.model.token_head_is_trained

    def test_what_is_refused(self, make_trainer, tmp_path):
        with pytest.raises(TypeError, match="`processing_class` must be a tokenizer, but is 'a name': load it with"):
            make_trainer(processing_class="a name")
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
        settings["per_device_eval_batch_size"] = 7  # of 21: RewardTrainer's metrics are means over batches
        theirs = make_trainer(sequence_classifier(), RewardTrainer, RewardConfig, **settings)
        ours = make_trainer(sequence_classifier(), token_loss_weight=0, **settings)
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
        [{}, {"token_loss": "ranking"}, {"unchanged_token_target": "zero", "use_anchors": True}],
        ids=["classification", "ranking", "zero"],
    )
    def test_a_step_does_not_depend_on_its_batches(self, settings, make_trainer):
        steps = []
        # The last step of the epoch has fewer batches than the others, or a smaller one.
        for batch, accumulation in ((4, 1), (1, 4), (2, 2)):
            trainer = make_trainer(
                train_dataset=Dataset.from_list(UNEVEN),
                per_device_train_batch_size=batch,
                gradient_accumulation_steps=accumulation,
                optim="sgd",
                learning_rate=0.01,
                head_learning_rate=0.01,
                max_grad_norm=0,
                max_steps=2,
                **settings,
            )
            torch.nn.init.normal_(trainer.model.token_score.weight, generator=torch.Generator().manual_seed(1))
            before = parameters_to_vector(trainer.model.parameters()).detach()
            trainer.train()
            logs = [{key: log[key] for key in log if key.startswith("loss")} for log in training_logs(trainer)]
            steps.append((before - parameters_to_vector(trainer.model.parameters()).detach(), logs))
        (whole, logs), *others = steps
        for parts, of_parts in others:
            assert (whole - parts).norm() < 1e-5 * whole.norm()
            for one, other in zip(logs, of_parts, strict=True):
                assert one == pytest.approx(other, rel=1e-6, abs=1e-5)

    @pytest.mark.timeout(300)
    @pytest.mark.slow
    def test_a_step_does_not_depend_on_the_processes(self, make_trainer, tmp_path):
        model = TokenRewardModel.from_backbone(causal_lm())
        torch.nn.init.normal_(model.token_score.weight, generator=torch.Generator().manual_seed(1))
        model.save_pretrained(tmp_path / "model")
        make_tokenizer("bpe").save_pretrained(tmp_path / "model")
        (tmp_path / "rows.json").write_text(json.dumps(UNEVEN[:4]))
        script = tmp_path / "train.py"
        script.write_text(
            "import json, sys\n"
            "import torch\n"
            "from datasets import Dataset\n"
            "from trl_tokenreward import TokenRewardConfig, TokenRewardTrainer\n"
            "folder = sys.argv[1]\n"
            "dataset = Dataset.from_list(json.load(open(folder + '/rows.json')))\n"
            "args = TokenRewardConfig(folder + '/out', use_cpu=True, bf16=False, report_to='none', save_strategy='no',\n"
            "                         per_device_train_batch_size=2, max_steps=1, optim='sgd', learning_rate=0.5,\n"
            "                         head_learning_rate=0.5, max_grad_norm=0)\n"
            "trainer = TokenRewardTrainer(folder + '/model', args, train_dataset=dataset)\n"
            "trainer.train()\n"
            "assert trainer.accelerator.num_processes == 2\n"
            "if trainer.is_world_process_zero():\n"
            "    torch.save(trainer.model.state_dict(), folder + '/trained.pt')\n"
        )
        processes.launch(script, tmp_path)
        alone = make_trainer(
            model,
            train_dataset=Dataset.from_list(UNEVEN[:4]),
            max_steps=1,
            optim="sgd",
            learning_rate=0.5,
            head_learning_rate=0.5,
            max_grad_norm=0,
        )
        before = {name: weight.clone() for name, weight in alone.model.state_dict().items()}
        alone.train()
        together = torch.load(tmp_path / "trained.pt")
        for name, weight in alone.model.state_dict().items():
            change = (weight - before[name]).norm()
            assert (weight - together[name]).norm() <= 1e-4 * change + 1e-7, name

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


class TestHeadLearningRate:
    @pytest.mark.parametrize(
        ("settings", "trained", "expected"),
        [
            ({}, False, 3e-3),
            ({"learning_rate": 5e-3}, False, 5e-3),
            ({"head_learning_rate": 2e-4}, False, 2e-4),
            ({"token_loss_weight": 0.0}, False, 1e-3),
            ({}, True, 1e-3),
            ({"head_learning_rate": 2e-4}, True, 2e-4),
        ],
    )
    def test_the_heads_have_a_group_of_their_own(self, make_trainer, settings, trained, expected):
        model = TokenRewardModel.from_backbone(causal_lm("llama"))
        if trained:
            torch.nn.init.ones_(model.token_score.weight)
        trainer = make_trainer(model, weight_decay=0.1, **settings)
        trainer.create_optimizer()
        heads = {id(p) for head in (trainer.model.score, trainer.model.token_score) for p in head.parameters()}
        rates = {
            (id(p) in heads, group["lr"], group["weight_decay"] if id(p) in heads else None)
            for group in trainer.optimizer.param_groups
            for p in group["params"]
        }
        assert rates == {(True, expected, 0.0), (False, settings.get("learning_rate", 1e-3), None)}
        every = [p for group in trainer.optimizer.param_groups for p in group["params"]]
        assert len(every) == len(set(map(id, every))) == len(list(trainer.model.parameters()))

    def test_it_must_be_a_number(self, tmp_path):
        with pytest.raises(ValueError, match="`head_learning_rate` must be a finite number"):
            TokenRewardConfig(str(tmp_path), bf16=False, head_learning_rate=float("inf"))
