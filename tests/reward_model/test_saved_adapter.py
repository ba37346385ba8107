"""The adapter of a token reward model, loaded by its folder."""

import json
from copy import deepcopy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model

import tiny
from model_cases import LORA_TARGETS, assert_same, batch
from trl_tokenreward import TokenRewardConfig, TokenRewardModel, TokenRewardTrainer, TokenScorer
from trl_tokenreward.cli.main import main
from trl_tokenreward.grpo.sources import load_source
from trl_tokenreward.ppo.completion_scorer import CompletionScorer
from trl_tokenreward.reward_model.saved_adapter import load_merged, saved_adapter


pytestmark = pytest.mark.any_trl

HEADS = ["score", "token_score"]


def save_adapter(folder, family: str = "llama", base=None):
    """An adapter with random weights, in `folder / "adapter"`, of a model that is in `folder / "base"` unless
    given."""
    if base is None:
        tiny.causal_lm(family).save_pretrained(folder / "base")
        base = TokenRewardModel.from_pretrained(folder / "base")
    config = LoraConfig(target_modules=LORA_TARGETS[family], modules_to_save=HEADS, init_lora_weights=False)
    model = get_peft_model(base, config).eval()
    for name, parameter in model.named_parameters():
        if "score" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder / "adapter")
    tiny.tokenizer().save_pretrained(folder / "adapter")
    return model


def test_it_is_merged_into_its_base(tmp_path, family):
    model = save_adapter(tmp_path, family)
    loaded = TokenRewardModel.from_pretrained(tmp_path / "adapter")
    ids, mask = batch()
    expected, output = model(ids, mask), loaded(ids, mask)
    assert_same(output.token_scores, expected.token_scores)
    assert_same(output.logits, expected.logits)
    assert type(loaded) is TokenRewardModel and not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.name_or_path == str(tmp_path / "adapter")
    deepcopy(TokenRewardModel.from_backbone(loaded)).save_pretrained(tmp_path / "whole")
    assert_same(TokenRewardModel.from_pretrained(tmp_path / "whole")(ids, mask).token_scores, expected.token_scores)


def test_arguments_are_those_of_the_base(tmp_path):
    save_adapter(tmp_path)
    loaded = TokenRewardModel.from_pretrained(tmp_path / "adapter", dtype="bfloat16", attn_implementation="eager")
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.model.config._attn_implementation == "eager"


def test_the_base_is_fetched_with_the_same_access(tmp_path):
    save_adapter(tmp_path)
    asked = {}

    def load(name, **kwargs):
        asked.update(kwargs)
        return TokenRewardModel.from_pretrained(name)

    access = {"token": "hf_x", "local_files_only": True, "cache_dir": str(tmp_path / "cache")}
    given = {**access, "revision": "main", "subfolder": "", "code_revision": "main", "dtype": "float32"}
    load_merged(load, saved_adapter(tmp_path / "adapter", access), tmp_path / "adapter", given)
    assert asked == {**access, "dtype": "float32"}  # where in its repository an adapter lies says nothing of its base


def test_an_adapter_of_an_adapter(tmp_path):
    first = tmp_path / "first"
    save_adapter(first)
    model = save_adapter(tmp_path, base=TokenRewardModel.from_pretrained(first / "adapter"))
    ids, mask = batch()
    loaded = TokenRewardModel.from_pretrained(tmp_path / "adapter")
    assert_same(loaded(ids, mask).token_scores, model(ids, mask).token_scores)


def test_what_the_trainer_saves_is_scored_by_its_folder(tmp_path, capsys):
    tiny.causal_lm().save_pretrained(tmp_path / "base")
    rows = [{"prompt": "a", "chosen": " b c", "rejected": " d c"}] * 4
    trainer = TokenRewardTrainer(
        str(tmp_path / "base"),
        TokenRewardConfig(str(tmp_path / "adapter"), max_steps=2, use_cpu=True, bf16=False, report_to="none"),
        train_dataset=Dataset.from_list(rows),
        processing_class=tiny.tokenizer(),
        peft_config=LoraConfig(target_modules=["q_proj"]),
    )
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    assert "PeftModel" not in (tmp_path / "adapter/README.md").read_text()
    scorer = TokenScorer.from_pretrained(tmp_path / "adapter")
    assert scorer.has_sequence_score
    ids, mask = batch()
    assert_same(scorer.model(ids, mask).token_scores, trainer.model.eval()(ids, mask).token_scores)
    around = PeftModel.from_pretrained(TokenRewardModel.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    for model in (scorer.model, around):  # its sequence head is new in the base, and trained in the adapter
        assert CompletionScorer(model, tiny.tokenizer(), signal="sequence_score").signal == "sequence_score"
    (tmp_path / "texts.jsonl").write_text(json.dumps({"prompt": "a", "text": " b c"}) + "\n")
    assert not main(["score", str(tmp_path / "adapter"), "--file", str(tmp_path / "texts.jsonl")])
    assert "b" in capsys.readouterr().out


@pytest.mark.parametrize("embeddings", [300, 340])  # a template makes them as many as the tokens, 302
@pytest.mark.parametrize("peft_config", [None, LoraConfig(target_modules=["q_proj"])], ids=["full", "lora"])
def test_tokens_that_a_chat_template_adds(embeddings, peft_config, tmp_path):
    tiny.causal_lm(vocab_size=embeddings).save_pretrained(tmp_path / "base")
    source = tiny.tokenizer()
    source.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>"]})
    source.chat_template = "{% for m in messages %}<|start|>{{ m['role'] }} {{ m['content'] }}<|end|>{% endfor %}"
    source.save_pretrained(tmp_path / "source")
    sides = {"prompt": ("user", "a"), "chosen": ("assistant", "b c"), "rejected": ("assistant", "d c")}
    settings = {"max_steps": 2, "use_cpu": True, "bf16": False, "report_to": "none"}
    trainer = TokenRewardTrainer(
        str(tmp_path / "base"),
        TokenRewardConfig(str(tmp_path / "out"), chat_template_path=str(tmp_path / "source"), **settings),
        train_dataset=Dataset.from_list(
            [{side: [{"role": role, "content": text}] for side, (role, text) in sides.items()}] * 4
        ),
        processing_class=tiny.tokenizer(),
        peft_config=peft_config,
    )
    trainer.train()
    trainer.save_model()
    ids = torch.tensor([[300, 5, 6, 301]])
    loaded = TokenRewardModel.from_pretrained(tmp_path / "out")
    assert_same(loaded(ids).token_scores, trainer.model.eval()(ids).token_scores)


class TestRefused:
    def test_without_a_base(self, tmp_path):
        save_adapter(tmp_path)
        edit_config(tmp_path / "adapter", base_model_name_or_path=None)
        with pytest.raises(ValueError, match="does not say of which model"):
            TokenRewardModel.from_pretrained(tmp_path / "adapter")

    def test_pickles(self, tmp_path):
        model = save_adapter(tmp_path)
        (tmp_path / "adapter/adapter_model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "adapter/adapter_model.bin")
        with pytest.raises(ValueError, match="Pickled weights are not loaded"):
            TokenRewardModel.from_pretrained(tmp_path / "adapter")

    def test_layers_that_the_adapter_does_not_have(self, tmp_path):
        save_adapter(tmp_path)
        edit_config(tmp_path / "adapter", target_modules=["q_proj", "v_proj", "o_proj", "up_proj"])
        with pytest.raises(ValueError, match="missing adapter keys"):
            TokenRewardModel.from_pretrained(tmp_path / "adapter")

    @pytest.mark.parametrize("base", ["/nowhere/base", "nowhere/base"])
    def test_a_base_that_is_not_there(self, tmp_path, base):
        save_adapter(tmp_path)
        edit_config(tmp_path / "adapter", base_model_name_or_path=base)
        with pytest.raises(ValueError, match=r"base model \(`base_model_name_or_path` of the adapter .*adapter\)"):
            TokenRewardModel.from_pretrained(tmp_path / "adapter")

    def test_a_base_of_another_size(self, tmp_path):
        save_adapter(tmp_path)
        tiny.causal_lm(hidden_size=32).save_pretrained(tmp_path / "base")
        with pytest.raises(ValueError, match="does not fit its base model"):
            TokenRewardModel.from_pretrained(tmp_path / "adapter")

    def test_a_frozen_adapter_is_not_trained(self, tmp_path):
        save_adapter(tmp_path)
        base = TokenRewardModel.from_pretrained(tmp_path / "base")
        trainer = TokenRewardTrainer(
            PeftModel.from_pretrained(base, tmp_path / "adapter"),
            TokenRewardConfig(str(tmp_path / "out"), max_steps=1, use_cpu=True, bf16=False, report_to="none"),
            train_dataset=Dataset.from_list([{"prompt": "a", "chosen": " b c", "rejected": " d c"}]),
            processing_class=tiny.tokenizer(),
        )
        with pytest.raises(ValueError, match="has nothing to train"):
            trainer.train()

    def test_a_reward_of_grpo(self, tmp_path):
        policy = get_peft_model(tiny.causal_lm(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
        policy.save_pretrained(tmp_path / "policy")
        with pytest.raises(ValueError, match="is the adapter of a language model"):
            load_source(str(tmp_path / "policy"), None, None, None)
        with pytest.raises(ValueError, match="No reward model could be loaded from no-such-model"):
            load_source("no-such-model", None, None, None)

    def test_other_errors_stay(self, tmp_path):
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(ValueError, match="model_type"):
            TokenRewardModel.from_pretrained(tmp_path)
        with pytest.raises(OSError):
            TokenRewardModel.from_pretrained("no/such-model")


def edit_config(folder, **values) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_an_adapter_itself_is_still_loaded_around_its_base(tmp_path):
    model = save_adapter(tmp_path)
    loaded = PeftModel.from_pretrained(TokenRewardModel.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    ids, mask = batch()
    assert_same(loaded.eval()(ids, mask).token_scores, model(ids, mask).token_scores)
