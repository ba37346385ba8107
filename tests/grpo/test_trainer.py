"""FineGrainedGRPOTrainer: TRL's GRPO where rewards are of completions, an advantage for every token where they are not."""

import math

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM
from trl import GRPOConfig, GRPOTrainer

import tiny
from grpo_runs import kept_batches
from trl_tokenreward import (
    FineGrainedGRPOConfig,
    FineGrainedGRPOTrainer,
    RewardHackingCallback,
    ScoringJudge,
    TokenRewardModel,
    WinRateCallback,
    read_completions,
)
from trl_tokenreward.ppo.functional import hold_mean_length


pytestmark = pytest.mark.filterwarnings("ignore:You are using 'rollout_func':UserWarning")

PROMPTS = Dataset.from_dict({"prompt": ["a b", "c", "d e f", "a a b"] * 2, "wish": ["a", "b", "c", "d"] * 2})


def settings(tmp_path, **kwargs):
    return {
        "output_dir": str(tmp_path),
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 6,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "beta": 0.04,
        **kwargs,
    }


@pytest.fixture(scope="module", autouse=True)
def policy_folder(tmp_path_factory):
    """TRL makes its reference of the policy's name, so the policy has one."""
    global POLICY
    POLICY = str(tmp_path_factory.mktemp("policy"))
    tiny.causal_lm(vocab_size=16, initializer_range=0.5).save_pretrained(POLICY)


def policy():
    return AutoModelForCausalLM.from_pretrained(POLICY)


def count_a(completions, **kwargs):
    return [float(text.count("a")) for text in completions]


def length(completions, **kwargs):
    return [len(text) / 10 for text in completions]


SCORES = {i: float(i % 3) - 1 for i in range(16)}


def by_token(completion_ids, **kwargs):
    return [[SCORES[i] for i in ids] for ids in completion_ids]


def rollout_of(ids, own=None):
    """A rollout function that gives these completions; `own` marks tokens that are not a tool's."""

    def rollout(prompts, trainer):
        given = {"prompt_ids": [[tiny.C]] * len(ids), "completion_ids": ids}
        given["logprobs"] = [[-1.0] * len(completion) for completion in ids]
        return given if own is None else {**given, "env_mask": own}

    return rollout


def trainer_for(
    tmp_path,
    reward_funcs,
    processing_classes=None,
    dataset=PROMPTS,
    rollout_func=None,
    peft_config=None,
    eval_dataset=None,
    **kwargs,
):
    return FineGrainedGRPOTrainer(
        policy(),
        reward_funcs,
        FineGrainedGRPOConfig(**settings(tmp_path, **kwargs)),
        dataset,
        eval_dataset,
        processing_class=tiny.word_tokenizer(),
        reward_processing_classes=processing_classes,
        rollout_func=rollout_func,
        peft_config=peft_config,
    )


def logs(trainer):
    timed = ("step_time", "runtime", "per_second", "profiling")
    return [
        {name: value for name, value in entry.items() if not any(word in name for word in timed)}
        for entry in trainer.state.log_history
    ]


def reward_model():
    return tiny.unigram_reward_model({i: 2 * score for i, score in SCORES.items()})


def trained(*args, **kwargs):
    """What each rollout of a whole training gave. (The next trainer starts the random numbers anew.)"""
    trainer = trainer_for(*args, **kwargs)
    kept = kept_batches(trainer)
    trainer.train()
    return kept


class TestRewardsOfCompletions:
    @pytest.mark.parametrize("more", [{}, {"scale_rewards": "batch", "loss_type": "bnpo"}], ids=["default", "batch"])
    def test_it_is_grpo_bit_for_bit(self, tmp_path, more):
        kwargs = settings(tmp_path, reward_weights=[1.0, 0.5], **more)
        runs = []
        for trainer_class, config_class in (
            (GRPOTrainer, GRPOConfig),
            (FineGrainedGRPOTrainer, FineGrainedGRPOConfig),
            (FineGrainedGRPOTrainer, GRPOConfig),
        ):
            trainer = trainer_class(
                policy(),
                [count_a, length],
                config_class(**kwargs),
                PROMPTS,
                processing_class=tiny.word_tokenizer(),
            )
            trainer.train()
            runs.append((logs(trainer), trainer.model.state_dict()))
        assert any(abs(entry.get("grad_norm", 0)) > 0 for entry in runs[0][0])
        for other in runs[1:]:
            assert str(other[0]) == str(runs[0][0])  # NaN among them
            for name, weight in runs[0][1].items():
                assert torch.equal(weight, other[1][name]), name

    def test_the_sequence_score_is_read_at_the_end_that_the_policy_wrote(self, tmp_path):
        """TRL would read the text, of which the end is no part."""
        model = tiny.unigram_reward_model({}, {tiny.EOS: 5.0, tiny.B: 1.0, tiny.D: -2.0})
        ids = [[tiny.B, tiny.EOS], [tiny.EOS], [tiny.D, tiny.B], [tiny.D]]
        options = {"reward_signal": "sequence_score", "rollout_func": rollout_of(ids), "max_steps": 1}
        trainer = trainer_for(tmp_path, model, scale_rewards="none", **options)
        kept = kept_batches(trainer)
        trainer.train()
        assert trainer._rewards_per_func[:, 0].tolist() == pytest.approx([5, 5, 1, -2], abs=1e-4)
        assert kept[0]["advantages"].tolist() == pytest.approx([2.75, 2.75, -1.25, -4.25], abs=1e-4)

    def test_a_sequence_classifier_is_read_by_trl(self, tmp_path):
        trainer = trainer_for(
            tmp_path, tiny.unigram_classifier({tiny.A: 1.0}), processing_classes=tiny.word_tokenizer()
        )
        kept = kept_batches(trainer)
        trainer.train()
        assert kept[0]["advantages"].ndim == 1

    @pytest.mark.parametrize(
        "name, value", [("advantage_estimator", "leave_one_out"), ("reward_scale", 2.0), ("reward_clip", 1.0)]
    )
    def test_settings_of_token_rewards_are_refused(self, tmp_path, name, value):
        with pytest.raises(ValueError, match=f"`{name}` is about rewards of tokens"):
            trainer_for(tmp_path, count_a, **{name: value}).train()


@pytest.mark.parametrize("give", [iter, tuple, torch.tensor], ids=["iterator", "tuple", "tensor"])
def test_what_else_functions_may_return(tmp_path, give):
    """As in TRL, where NaN is no opinion too."""
    rewards = [1.0, float("nan"), 0.0, 2.0]
    trainer = trainer_for(tmp_path, lambda completions, **_: give(rewards), max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["rewards/<lambda>/mean"] == pytest.approx(1.0)


class TestTokenRewards:
    def test_a_function(self, tmp_path):
        trainer = trainer_for(tmp_path, by_token, scale_rewards="none", advantage_estimator="leave_one_out")
        kept = kept_batches(trainer)
        trainer.train()
        batch = kept[0]
        mask, ids = batch["completion_mask"], batch["completion_ids"]
        rewards = torch.tensor(list(SCORES.values()))[ids] * mask
        returns = rewards.flip(1).cumsum(1).flip(1)
        assert batch["advantages"].shape == ids.shape
        for row in range(4):
            for t in range(int(mask[row].sum())):
                others = [j for j in range(4) if j != row and mask[j, t]]
                if others:
                    expected = returns[row, t] - returns[others, t].mean()
                    assert batch["advantages"][row, t] == pytest.approx(float(expected), abs=1e-5)
        assert (batch["advantages"][mask == 0] == 0).all()

    @pytest.mark.parametrize("kind", ["model", "folder"])
    def test_a_token_reward_model(self, tmp_path, kind):
        reward, classes = reward_model(), None
        if kind == "folder":
            reward.save_pretrained(tmp_path / "reward")
            tiny.word_tokenizer().save_pretrained(tmp_path / "reward")
            reward = str(tmp_path / "reward")
        trainer = trainer_for(
            tmp_path, reward, processing_classes=classes, scale_rewards="none", hold_length=False, reward_clip=math.inf
        )
        kept = kept_batches(trainer)
        trainer.train()
        batch = kept[0]
        mask, ids = batch["completion_mask"].bool(), batch["completion_ids"]
        raw = 2 * torch.tensor(list(SCORES.values()))[ids]
        rewards = 0.2 * torch.nn.functional.logsigmoid(raw)
        rewards = (rewards - rewards[mask].mean()) * mask
        expected = rewards.flip(1).cumsum(1).flip(1) * mask
        torch.testing.assert_close(batch["advantages"], expected, atol=1e-5, rtol=1e-5)
        entry = next(entry for entry in trainer.state.log_history if "reward" in entry)
        # Logged are the raw scores.
        assert entry["reward"] == pytest.approx(float((raw * mask).sum(1).mean()), abs=1e-5)

    def test_all_on_the_last_token_is_grpo(self, tmp_path):
        """Of the sums of the token rewards, that is."""

        def totals(completion_ids, **kwargs):
            return [sum(row) for row in by_token(completion_ids)]

        dense = trained(tmp_path, by_token, reward_density="sequence")
        for ours, theirs in zip(dense, trained(tmp_path, totals), strict=True):
            assert theirs["advantages"].abs().max() > 0
            torch.testing.assert_close(ours["completion_ids"], theirs["completion_ids"])
            expected = theirs["advantages"].unsqueeze(1) * ours["completion_mask"]
            torch.testing.assert_close(ours["advantages"], expected, atol=1e-5, rtol=1e-5)

    def test_rewards_of_both_kinds_add_up(self, tmp_path):
        kwargs = {"scale_rewards": "none", "advantage_estimator": "leave_one_out"}
        dense, whole, both = (
            trained(tmp_path, [by_token, length], reward_weights=weights, max_steps=1, **kwargs)[0]["advantages"]
            for weights in ([1.0, 0.0], [0.0, 2.0], [1.0, 2.0])
        )
        assert whole.abs().max() > 0
        torch.testing.assert_close(both, dense + whole, atol=1e-5, rtol=1e-5)

    def test_no_opinion(self, tmp_path):
        """`None` for a completion: it gets no advantage, and the others are compared among themselves."""

        def sometimes(completion_ids, **kwargs):
            rewards = by_token(completion_ids)
            return [None, *rewards[1:]]

        trainer = trainer_for(tmp_path, sometimes)
        kept = kept_batches(trainer)
        trainer.train()
        assert any((batch["advantages"] == 0).all(1).any() for batch in kept)
        assert all(batch["advantages"].isfinite().all() for batch in kept)

    def test_an_async_function(self, tmp_path):
        async def later(completion_ids, **kwargs):
            return by_token(completion_ids)

        now, then = (trained(tmp_path, reward, max_steps=1)[0]["advantages"] for reward in (by_token, later))
        torch.testing.assert_close(now, then)

    def test_another_tokenizer(self, tmp_path):
        """The reward model has the same words under other ids."""
        own, other = tiny.word_tokenizer(), tiny.word_tokenizer(words="lkjihgfedcba.")
        scores = {other.convert_tokens_to_ids(own.convert_ids_to_tokens(i)): score for i, score in SCORES.items()}
        ids = [[tiny.A, tiny.F, tiny.C], [tiny.B], [tiny.D, tiny.E, tiny.EOS], [tiny.C, tiny.B]]
        ours, theirs = (
            trained(
                tmp_path,
                tiny.unigram_reward_model(by_id),
                processing_classes=tokenizer,
                max_steps=1,
                rollout_func=rollout_of(ids),
            )[0]["advantages"]
            for by_id, tokenizer in ((SCORES, None), (scores, other))
        )
        assert ours.abs().max() > 0
        torch.testing.assert_close(ours, theirs)

    def test_another_tokenizers_template_gets_what_the_policys_gets(self, tmp_path):
        own, other = tiny.word_tokenizer(), tiny.word_tokenizer(words="lkjihgfedcba.")
        for tokenizer in (own, other):
            tokenizer.chat_template = "{{ messages[0]['content'] }} {{ 'd' if thinking else 'e' }}"
        model, seen = tiny.unigram_reward_model(dict.fromkeys(range(16), 1.0)), []
        model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.extend(kwargs["input_ids"].tolist()), with_kwargs=True
        )
        trainer = FineGrainedGRPOTrainer(
            policy(),
            model,
            FineGrainedGRPOConfig(**settings(tmp_path, max_steps=1, chat_template_kwargs={"thinking": True})),
            Dataset.from_dict({"prompt": [[{"role": "user", "content": "a"}]] * 4}),
            processing_class=own,
            reward_processing_classes=other,
            rollout_func=rollout_of([[tiny.B]] * 4),
        )
        trainer.train()
        assert other.batch_decode(seen[:1]) == ["a d b"]

    def test_it_learns(self, tmp_path):
        trainer = trainer_for(
            tmp_path,
            reward_model(),
            max_steps=12,
            per_device_train_batch_size=16,
            num_generations=8,
            beta=0.0,
            learning_rate=2e-2,
        )
        trainer.train()
        rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
        assert sum(rewards[-3:]) > sum(rewards[:3]) + 3

    @pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo"])
    def test_loss_types(self, tmp_path, loss_type):
        """At the first step every loss is minus a weighted mean of the advantages, and its gradient follows them."""
        trainer = trainer_for(tmp_path, by_token, loss_type=loss_type, beta=0.0, max_steps=1, scale_rewards="none")
        kept = kept_batches(trainer)
        trainer.train()
        batch = kept[0]
        advantages, mask = batch["advantages"], batch["completion_mask"]
        logged = trainer.state.log_history[0]
        sums = (advantages * mask).sum(1)
        expected = {
            "grpo": (sums / mask.sum(1)).mean(),
            "bnpo": sums.sum() / mask.sum(),
            "dr_grpo": sums.sum() / (len(mask) * 6),
            "dapo": sums.sum() / mask.sum(),
            "luspo": sums.mean(),
        }
        if loss_type in expected:
            assert logged["loss"] == pytest.approx(-float(expected[loss_type]), abs=2e-4)
        assert logged["grad_norm"] > 0

    def test_steps_per_generation(self, tmp_path):
        """The rollout is larger than a batch; each batch has its own rows' advantages."""
        trainer = trainer_for(tmp_path, reward_model(), steps_per_generation=2, max_steps=4, num_iterations=2)
        trainer.train()
        assert trainer.state.global_step == 4
        assert all(math.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)

    def test_evaluation(self, tmp_path):
        trainer = FineGrainedGRPOTrainer(
            policy(),
            reward_model(),
            FineGrainedGRPOConfig(
                **settings(tmp_path, eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=4)
            ),
            PROMPTS,
            PROMPTS,
            processing_class=tiny.word_tokenizer(),
        )
        trainer.train()
        assert math.isfinite(trainer.evaluate()["eval_loss"])

    def test_what_is_logged_for_alarms(self, tmp_path):
        trainer = trainer_for(tmp_path, reward_model(), max_steps=1)
        assert any(isinstance(callback, RewardHackingCallback) for callback in trainer.callback_handler.callbacks)
        trainer.train()
        assert {"reward", "kl", "completions/mean_length", "completions/repetition"} <= trainer.state.log_history[
            0
        ].keys()

    def test_the_table_has_the_mean_advantages(self, tmp_path):
        trainer = trainer_for(tmp_path, by_token, max_steps=1)
        kept = kept_batches(trainer)
        trainer.train()
        batch = kept[0]
        means = (batch["advantages"].sum(1) / batch["completion_mask"].sum(1)).tolist()
        assert sorted(trainer._logs["advantages"]) == pytest.approx(sorted(means))


class TestBeside:
    """What works with other trainers works with this one."""

    def test_win_rates_during_the_run(self, tmp_path):
        trainer = trainer_for(tmp_path, reward_model(), max_steps=2)
        judge = ScoringJudge(lambda prompts, answers: [len(answer) for answer in answers])
        trainer.add_callback(WinRateCallback(trainer, judge, ["a", "b c"], every=2, response_length=4))
        trainer.train()
        [entry] = [entry for entry in trainer.state.log_history if "eval_win_rate" in entry]
        assert 0 <= entry["eval_win_rate"] <= 1 and math.isfinite(entry["eval_kl"])

    def test_a_win_rate_takes_nothing_out_of_the_log_of_the_training(self, tmp_path):
        logs = []
        for every in (1, 4):
            trainer = trainer_for(tmp_path, count_a, max_steps=2, logging_steps=2, temperature=0.7)
            judge = ScoringJudge(lambda prompts, answers: [len(answer) for answer in answers])
            callback = WinRateCallback(trainer, judge, ["a", "b c"], every=every)
            assert (callback.sampler.response_length, callback.sampler.temperature) == (6, 0.7)
            trainer.add_callback(callback)
            trainer.train()
            [log] = [entry for entry in trainer.state.log_history if "loss" in entry]
            logs.append({name: value for name, value in log.items() if "time" not in name})
        assert "reward" in logs[0]
        assert logs[0] == logs[1]

    def test_an_adapter(self, tmp_path):
        peft = pytest.importorskip("peft")
        trainer = trainer_for(
            tmp_path,
            reward_model(),
            max_steps=2,
            peft_config=peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
        )
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
        trainer.train()
        after = dict(trainer.model.named_parameters())
        assert all("lora" in name for name in before)
        assert any(not torch.equal(tensor, after[name]) for name, tensor in before.items())

    def test_the_completions_of_a_run_can_be_read(self, tmp_path):
        ids = [[tiny.A, tiny.F, tiny.C], [tiny.B], [tiny.D, tiny.E, tiny.EOS], [tiny.C, tiny.B]]
        own = [[1, 0, 1], [1], [1, 1, 1], [1, 1]]
        kept = trained(
            tmp_path,
            by_token,
            max_steps=1,
            log_completions=True,
            rollout_func=rollout_of(ids, own),
            scale_rewards="none",
        )
        rows = read_completions(tmp_path)
        assert len(rows) == 4
        by_text = {tuple(text.tokens): text for row in rows for text in row.texts}
        assert by_text.keys() == {(" a", " c"), (" b",), (" d", " e", " <eos>"), (" c", " b")}
        text = by_text[" a", " c"]
        # The tool's token between the two is not the policy's.
        assert text.series["score"] == text.series["reward"] == [SCORES[tiny.A], SCORES[tiny.C]]
        assert text.series["advantage"] == pytest.approx(kept[0]["advantages"][0, [0, 2]].tolist())
        assert "KL" not in text.series and text.numbers == {"score": 0.0, "reward": 0.0}
        assert text.name == "2 tokens, cut off" and by_text[" d", " e", " <eos>"].name == "3 tokens"


class TestTools:
    def test_tokens_of_tools_get_neither_reward_nor_advantage(self, tmp_path):
        """A rollout function whose completions are two tokens, two of a tool, and one more."""
        ids = [[tiny.A, tiny.C, tiny.A, tiny.A, tiny.B], [tiny.B, tiny.C, tiny.A, tiny.A, tiny.EOS]] * 2

        own = [[1, 1, 0, 0, 1]] * 4
        kept = trained(tmp_path, by_token, scale_rewards="none", max_steps=1, rollout_func=rollout_of(ids, own))
        # Tokens a to e are 3 to 7, whose rewards are -1, 0, 1, -1, 0; that of EOS is 0.
        # The rewards are -1 1 . . 0 and 0 1 . . 0. The mean of these, twice over, is 1/6.
        m = 1 / 6
        first, second = (0 - 3 * m, 1 - 2 * m, 0, 0, -m), (1 - 3 * m, 1 - 2 * m, 0, 0, -m)
        expected = torch.tensor([first, second, first, second])
        torch.testing.assert_close(kept[0]["advantages"], expected)


class TestHeldLength:
    def test_the_target_is_kept_in_the_checkpoint(self, tmp_path):
        kwargs = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
        trainer = trainer_for(tmp_path, reward_model(), **kwargs)
        trainer.train()
        target = trainer._target_length
        assert 1 <= target <= 6
        resumed = trainer_for(tmp_path, reward_model(), **{**kwargs, "max_steps": 3})
        resumed.train(resume_from_checkpoint=True)
        assert resumed._target_length == target and resumed.state.global_step == 3

    def test_rewards_of_completions(self, tmp_path):
        """GRPO's own advantages, and the hold on the length."""
        rollout = rollout_of([[tiny.A] * n for n in (5, 1, 3, 4)])
        plain, held = (
            trained(tmp_path, length, max_steps=1, rollout_func=rollout, **more)[0]
            for more in ({}, {"hold_length": True, "target_length": 3.0})
        )
        mask = plain["completion_mask"]
        expected, bonus = hold_mean_length(plain["advantages"].unsqueeze(1) * mask, mask, 3.0)
        assert bonus != 0
        torch.testing.assert_close(held["advantages"], expected, atol=1e-5, rtol=1e-5)

    def test_it_can_be_given(self, tmp_path):
        trainer = trainer_for(tmp_path, reward_model(), max_steps=1, eval_dataset=PROMPTS.select(range(4)))
        trainer.evaluate()
        assert trainer._target_length is None  # that is the first batch's of the training
        trainer = trainer_for(tmp_path, reward_model(), target_length=3.0, max_steps=1)
        trainer.train()
        assert trainer._target_length == 3.0


class TestRefused:
    @pytest.mark.parametrize(
        "name, value",
        [
            ("importance_sampling_level", "sequence"),
            ("loss_type", "vespo"),
            ("off_policy_mask_threshold", 0.5),
            ("multi_objective_aggregation", "normalize_then_sum"),
        ],
    )
    def test_settings_that_cannot_be_right(self, tmp_path, name, value):
        with pytest.raises(ValueError, match=f"`{name}=.*does not go with advantages of tokens"):
            trainer_for(tmp_path, reward_model(), **{name: value})

    def test_an_untrained_token_head(self, tmp_path):
        with pytest.raises(ValueError, match="token head is untrained"):
            trainer_for(tmp_path, tiny.unigram_reward_model())

    def test_a_reward_model_without_embeddings_for_all_tokens(self, tmp_path):
        model = tiny.causal_lm(vocab_size=20)
        model.save_pretrained(tmp_path / "large")
        with pytest.raises(ValueError, match="vocabulary of 20 and can sample ids that `.*`, with 16 embeddings"):
            FineGrainedGRPOTrainer(
                AutoModelForCausalLM.from_pretrained(tmp_path / "large"),
                reward_model(),
                FineGrainedGRPOConfig(**settings(tmp_path)),
                PROMPTS,
                processing_class=tiny.word_tokenizer(),
            )

    def test_several_gpus_in_one_process(self, tmp_path, monkeypatch):
        monkeypatch.setattr(FineGrainedGRPOConfig, "n_gpu", 2)
        with pytest.raises(ValueError, match="GPUs are visible to this one process|does not support `nn.DataParallel`"):
            trainer_for(tmp_path, by_token)

    def test_data_without_prompts(self, tmp_path):
        with pytest.raises(ValueError, match="need a column 'prompt'; they have \\['text'\\]"):
            trainer_for(tmp_path, by_token, dataset=Dataset.from_dict({"text": ["a"]}))

    def test_no_data_set_and_no_tokenizer(self, tmp_path):
        with pytest.raises(TypeError, match="The train data set must be a `Dataset`.*, but is a list"):
            trainer_for(tmp_path, by_token, dataset=[{"prompt": "a"}])
        with pytest.raises(TypeError, match=r"`reward_processing_classes\[0\]` must be a tokenizer, but is 'a name'"):
            trainer_for(tmp_path, reward_model(), ["a name"])

    @pytest.mark.parametrize(
        ("prompts", "message"),
        [
            (["a b", ""], "'' has no tokens for a completion to go on from."),
            (
                [[{"role": "user", "content": "a"}], []],
                r"the prompt must be a text or messages, not empty, but is \[\].",
            ),
            (["a", None], "the prompt must be a text or messages, not empty, but is None."),
            (
                [[{"role": "user", "content": "a"}], [{"rol": "user", "content": "a"}]],
                "messages need `role` and `content`, but one is {",
            ),
            (
                [[{"role": "user", "content": "a"}], [{"role": "user", "content": "b" * 9}]],
                "the chat template cannot ren",
            ),
        ],
    )
    @pytest.mark.parametrize("part", ["train", "eval_one"])
    def test_bad_prompts_are_named_by_row(self, tmp_path, prompts, message, part, monkeypatch):
        template = "{{ messages[0].content[:5] }}{% if messages[0].content|length > 5 %}{{ raise_exception('long') }}{% endif %}"
        tokenizer = tiny.word_tokenizer()
        tokenizer.chat_template = template
        monkeypatch.setattr(tiny, "word_tokenizer", lambda: tokenizer)
        rows = Dataset.from_dict({"prompt": prompts})
        data = {"dataset": rows} if part == "train" else {"eval_dataset": {"one": rows}}
        with pytest.raises(ValueError, match=f"^Row 1 of the {part} data set, column `prompt`: {message}"):
            trainer_for(tmp_path, by_token, **data)

    def test_prompts_that_are_no_texts(self, tmp_path):
        with pytest.raises(
            ValueError, match="^Row 0 of the train data set, column `prompt`: the prompt must be a text"
        ):
            trainer_for(tmp_path, by_token, dataset=Dataset.from_dict({"prompt": [1, 2]}))

    def test_no_prompts(self, tmp_path):
        with pytest.raises(ValueError, match="The train data set is empty"):
            trainer_for(tmp_path, by_token, dataset=PROMPTS.select([]))
        with pytest.raises(ValueError, match="The eval data set needs a column 'prompt'; it has \\['text'\\]"):
            trainer_for(tmp_path, by_token, eval_dataset=Dataset.from_dict({"text": ["a"]}))

    @pytest.mark.parametrize("reader", ["model", r"reward_funcs\[0\]"])
    def test_a_prompt_that_does_not_fit(self, tmp_path, reader):
        reward = reward_model()
        if reader != "model":
            reward.config.text_config.max_position_embeddings = 20
        most = 122 if reader == "model" else 14
        rows = Dataset.from_dict({"prompt": ["a", "a " * (most + 1)]})
        with pytest.raises(
            ValueError, match=f"in row 1 of the train .* `max_completion_length=6` do not fit .*`{reader}`"
        ):
            trainer_for(tmp_path, reward, dataset=rows)
        trainer_for(tmp_path, reward, dataset=Dataset.from_dict({"prompt": ["a", "a " * most]}))

    def test_what_no_reward_of_a_completion_uses(self, tmp_path):
        head = reward_model()
        torch.nn.init.ones_(head.score.weight)
        with pytest.raises(ValueError, match="`reward_clip` is about rewards of tokens and has no effect"):
            trainer_for(tmp_path, head, reward_signal="sequence_score", reward_clip=1.0)

    def test_a_tokenizer_that_is_not_the_models(self, tmp_path, caplog, monkeypatch):
        tiny.causal_lm(vocab_size=43).save_pretrained(tmp_path / "large")
        monkeypatch.setitem(globals(), "POLICY", str(tmp_path / "large"))
        trainer_for(tmp_path, by_token)
        assert caplog.text.count("The tokenizer has 16 tokens and `model` 43 embeddings") == 1

    def test_a_policy_in_bfloat16(self, tmp_path, caplog, monkeypatch):
        policy().to(torch.bfloat16).save_pretrained(tmp_path / "bfloat16")
        monkeypatch.setitem(globals(), "POLICY", str(tmp_path / "bfloat16"))
        trainer_for(tmp_path, by_token)
        assert caplog.text.count("Weights of `model` are trained in bfloat16") == 1

    def test_a_tokenizer_without_eos(self, tmp_path, monkeypatch):
        tokenizer = tiny.word_tokenizer()
        tokenizer.eos_token = tokenizer.pad_token = None
        monkeypatch.setattr(tiny, "word_tokenizer", lambda: tokenizer)
        with pytest.raises(
            ValueError, match="The tokenizer has no EOS token, by which TRL tells the end of a completion"
        ):
            trainer_for(tmp_path, by_token)

    def test_a_function_that_does_not_take_the_columns(self, tmp_path):
        def reward(prompts, completions, completion_ids, trainer_state, log_extra, log_metric):
            return [0.0] * len(prompts)

        message = "'reward' is called with .*, but does not take `wish`: end its arguments with `\\*\\*columns`"
        with pytest.raises(TypeError, match=message):
            trainer_for(tmp_path, reward)
        trainer_for(tmp_path, reward, dataset=PROMPTS.remove_columns("wish"))

    def test_a_language_model_as_a_reward(self, tmp_path):
        """TRL would make it a classifier whose head is random."""
        with pytest.raises(ValueError, match="policy.* is a language model \\(LlamaForCausalLM\\)"):
            trainer_for(tmp_path, POLICY)

    def test_the_sequence_score_of_a_new_head(self, tmp_path):
        new = TokenRewardModel.from_backbone(policy())
        with pytest.raises(ValueError, match="Train it with TokenRewardTrainer.$"):
            trainer_for(tmp_path, new)
        with pytest.raises(ValueError, match="The sequence head is untrained"):
            trainer_for(tmp_path, new, reward_signal="sequence_score")

    @pytest.mark.parametrize(
        "change, message",
        [
            (lambda rewards: rewards[:-1], "returned 3 scores for 4 completions"),
            (lambda rewards: [rewards[0][:-1], *rewards[1:]], "token scores for completion 0, which has"),
            (
                lambda rewards: [*rewards[:2], [math.nan] * len(rewards[2]), rewards[3]],
                r"\[nan.* for completion 2, where a finite",
            ),
            (lambda rewards: [*rewards[:3], [math.inf] * len(rewards[3])], r"\[inf.* for completion 3, where a finite"),
            (lambda rewards: [1.0, *rewards[1:]], "floats and lists of floats; return one kind"),
            (lambda rewards: ["x"] * len(rewards), "returned 'x' for completion 0, where a finite float"),
            (lambda rewards: {"scores": rewards}, "returned a dict, where a list of 4 entries is due"),
            (lambda rewards: [["x"] * len(rewards[0]), *rewards[1:]], r"x.* for completion 0, where a finite float"),
        ],
        ids=["completions", "tokens", "nan", "inf", "mixed", "texts", "dictionary", "strings"],
    )
    def test_what_functions_return(self, tmp_path, change, message):
        with pytest.raises((TypeError, ValueError), match=message):
            trainer_for(tmp_path, lambda completion_ids, **_: change(by_token(completion_ids))).train()

    @pytest.mark.parametrize("value", [math.inf, -math.inf])
    def test_an_infinite_reward_of_a_completion(self, tmp_path, value):
        def reward(completions, **_):
            return [0.0, value, *[1.0] * (len(completions) - 2)]

        with pytest.raises(
            ValueError, match=f"The reward function 'reward' returned {value} for completion 1, where a finite float"
        ):
            trainer_for(tmp_path, [reward_model(), reward]).train()

    def test_a_classifier_that_trl_reads_and_that_is_broken(self, tmp_path):
        classifier = tiny.unigram_classifier(dict.fromkeys(range(16), math.inf))
        with pytest.raises(ValueError, match="The reward '.*' of completion 0 is nan, not a finite number"):
            trainer_for(tmp_path, classifier, processing_classes=tiny.word_tokenizer()).train()

    def test_weights_that_are_not_finite_are_not_saved(self, tmp_path):
        trainer = trainer_for(tmp_path, reward_model(), max_steps=1, learning_rate=1e38)
        with pytest.raises(ValueError, match="After optimizer step 1: the weight .* has NaN or infinite numbers"):
            trainer.train()
        with pytest.raises(ValueError, match="has NaN or infinite numbers"):
            trainer.save_model(str(tmp_path / "saved"))

    def test_choices(self, tmp_path):
        with pytest.raises(ValueError, match="`advantage_estimator` must be one of"):
            FineGrainedGRPOConfig(**settings(tmp_path, advantage_estimator="gae"))
        with pytest.raises(ValueError, match="`target_length` is NaN"):
            FineGrainedGRPOConfig(**settings(tmp_path, target_length=float("nan")))

    @pytest.mark.parametrize(
        ("name", "value", "error", "message"),
        [
            ("temperature", 0.0, ValueError, "`temperature` must be positive, got 0.0"),
            ("temperature", math.nan, ValueError, "`temperature` is NaN"),
            ("reward_scale", 0, ValueError, "`reward_scale` must be a finite number and not 0"),
            ("reward_clip", "1", TypeError, "`reward_clip` must be a number, but is '1'"),
            ("max_completion_length", "6", TypeError, "`max_completion_length` must be a whole number, but is '6'"),
        ],
    )
    def test_values(self, tmp_path, name, value, error, message):
        with pytest.raises(error, match=message):
            FineGrainedGRPOConfig(**settings(tmp_path, **{name: value}))


class TestCheckpoints:
    def test_one_that_was_cut_short_is_passed_over(self, tmp_path):
        kwargs = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
        trainer_for(tmp_path, reward_model(), **kwargs).train()
        (tmp_path / "checkpoint-2" / "trainer_state.json").unlink()
        resumed = trainer_for(tmp_path, reward_model(), **kwargs)
        with pytest.raises(ValueError, match="checkpoint-2 cannot be resumed: it has no trainer_state.json"):
            resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        resumed.train(resume_from_checkpoint=True)
        assert resumed.state.global_step == 2 and (tmp_path / "checkpoint-2" / "trainer_state.json").exists()

    def test_one_that_is_written_over_an_earlier_one_is_not_whole_until_it_is(self, tmp_path, monkeypatch):
        kwargs = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
        trainer_for(tmp_path, reward_model(), **kwargs).train()
        again = trainer_for(tmp_path, reward_model(), **kwargs)
        monkeypatch.setattr(again, "save_model", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            again.train()
        assert not (tmp_path / "checkpoint-1" / "trainer_state.json").exists()
