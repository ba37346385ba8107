# /// script
# dependencies = ["trl-tokenreward[peft]"]
# ///
"""
PPO with dense rewards of a token reward model, on the prompts of HH-RLHF by default.

Full training:

    python examples/train_fine_grained_ppo.py \
        --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct \
        --reward_model_path Qwen2.5-0.5B-Token-Reward \
        --dataset_name Anthropic/hh-rlhf --dataset_config harmless-base \
        --output_dir Qwen2.5-0.5B-Fine-Grained-PPO \
        --per_device_train_batch_size 4 --gradient_accumulation_steps 16 \
        --total_episodes 10000 \
        --learning_rate 3.0e-6 \
        --response_length 128 --stop_token eos --missing_eos_penalty 1.0

LoRA:

    python examples/train_fine_grained_ppo.py \
        --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct \
        --reward_model_path Qwen2.5-0.5B-Token-Reward \
        --dataset_name Anthropic/hh-rlhf --dataset_config harmless-base \
        --output_dir Qwen2.5-0.5B-Fine-Grained-PPO-LoRA \
        --per_device_train_batch_size 4 --gradient_accumulation_steps 16 \
        --total_episodes 10000 \
        --learning_rate 3.0e-5 \
        --response_length 128 --stop_token eos --missing_eos_penalty 1.0 \
        --use_peft --lora_r 32 --lora_alpha 16

Several GPUs: put this in place of `python`, with ddp.yaml, fsdp2.yaml, zero2.yaml or zero3.yaml (docs/scaling.md says
which). The batch has per_device_train_batch_size * gradient_accumulation_steps * processes prompts.

    accelerate launch --config_file examples/accelerate_configs/fsdp2.yaml --num_processes 8

How token scores become rewards is left to the defaults, which docs/choosing-rewards.md explains. The reward model may
be a TokenRewardModel, a token classifier or a sequence classifier with one label; `--reward_density sequence` puts the
whole reward on the last token, as PPO always had it. Rows need a `prompt`, or are preference pairs with the prompt
inside. `--max_prompt_length` drops longer prompts and says how many.
"""

from dataclasses import dataclass, field

from datasets import Dataset, IterableDataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedConfig,
)
from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config, get_quantization_config

from trl_tokenreward import FineGrainedPPOConfig, FineGrainedPPOTrainer, TokenRewardModel
from trl_tokenreward.reward_model.saved_adapter import read_config
from trl_tokenreward.utils.loading import check_source, load_split


@dataclass
class PPOScriptArguments(ScriptArguments):
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the code that comes with the models and tokenizers."}
    )


def load_reward_model(path: str, keep_adapter: bool, **kwargs):
    """Loads a reward model of any supported kind. An adapter is merged into the model that it was trained on; one of a
    `TokenRewardModel` is not if `keep_adapter`: with LoRA, policy and reward model then hold one base."""
    config = read_config(path, {"trust_remote_code": kwargs["trust_remote_code"]})
    if not isinstance(config, PreTrainedConfig):
        from peft import PeftModel

        base = load_reward_model(config.base_model_name_or_path, keep_adapter, **kwargs)
        model = PeftModel.from_pretrained(base, path)
        return model if keep_adapter and isinstance(base, TokenRewardModel) else model.merge_and_unload()
    architecture = (config.architectures or [""])[0]
    if architecture.endswith("ForTokenClassification"):
        return AutoModelForTokenClassification.from_pretrained(path, num_labels=1, **kwargs)
    if architecture.endswith("ForSequenceClassification"):
        return AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, **kwargs)
    return TokenRewardModel.from_pretrained(path, **kwargs)


def main(script_args: PPOScriptArguments, training_args: FineGrainedPPOConfig, model_args: ModelConfig) -> None:
    trust = {"trust_remote_code": script_args.trust_remote_code}
    kwargs = {
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        "quantization_config": get_quantization_config(model_args),
        **trust,
    }
    tokenizer = AutoTokenizer.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision, **trust
    )
    if training_args.sft_model_path != FineGrainedPPOConfig.sft_model_path:  # the policy, as in TRL's script
        policy = AutoModelForCausalLM.from_pretrained(training_args.sft_model_path, **kwargs)
    else:
        policy = AutoModelForCausalLM.from_pretrained(
            model_args.model_name_or_path, revision=model_args.model_revision, **kwargs
        )
    if training_args.reward_model_path == FineGrainedPPOConfig.reward_model_path:  # TRL's default is no reward model
        raise ValueError("`--reward_model_path` is needed: a reward model's folder, or its name on the Hub.")
    check_source(training_args.reward_model_path, "reward model")
    reward_tokenizer = AutoTokenizer.from_pretrained(training_args.reward_model_path, **trust)

    def prompts(split: str) -> Dataset | IterableDataset:
        return load_split(script_args.dataset_name, split, script_args.dataset_config, script_args.dataset_streaming)

    trainer = FineGrainedPPOTrainer(
        args=training_args,
        processing_class=tokenizer,
        model=policy,
        reward_model=load_reward_model(training_args.reward_model_path, model_args.use_peft, **kwargs),
        train_dataset=prompts(script_args.dataset_train_split),
        eval_dataset=prompts(script_args.dataset_test_split) if training_args.eval_strategy != "no" else None,
        peft_config=get_peft_config(model_args),
        reward_processing_class=reward_tokenizer,
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
    trainer.generate_completions()
    trainer.accelerator.end_training()  # closes the process group, where there are several processes


if __name__ == "__main__":
    main(*TrlParser((PPOScriptArguments, FineGrainedPPOConfig, ModelConfig)).parse_args_and_config())
