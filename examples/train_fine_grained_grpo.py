# /// script
# dependencies = ["trl-tokenreward[peft]"]
# ///
"""
GRPO with an advantage for every token, from a token reward model, on the prompts of HH-RLHF by default.

Full training:

    python examples/train_fine_grained_grpo.py \
        --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct \
        --reward_model_path Qwen2.5-0.5B-Token-Reward \
        --dataset_name Anthropic/hh-rlhf --dataset_config harmless-base \
        --output_dir Qwen2.5-0.5B-Fine-Grained-GRPO \
        --per_device_train_batch_size 8 --gradient_accumulation_steps 8 \
        --num_generations 8 --max_completion_length 128 \
        --max_steps 500 --learning_rate 1.0e-6 --beta 0.04

LoRA:

    python examples/train_fine_grained_grpo.py \
        --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct \
        --reward_model_path Qwen2.5-0.5B-Token-Reward \
        --dataset_name Anthropic/hh-rlhf --dataset_config harmless-base \
        --output_dir Qwen2.5-0.5B-Fine-Grained-GRPO-LoRA \
        --per_device_train_batch_size 8 --gradient_accumulation_steps 8 \
        --num_generations 8 --max_completion_length 128 \
        --max_steps 500 --learning_rate 1.0e-5 --beta 0.04 \
        --use_peft --lora_r 32 --lora_alpha 16

Several GPUs: put this in place of `python`, with ddp.yaml or fsdp2.yaml (docs/scaling.md says which):

    accelerate launch --config_file examples/accelerate_configs/fsdp2.yaml --num_processes 8

The reward model is a folder or a name on the Hub: a TokenRewardModel, its adapter, a token classifier with one label,
or a sequence classifier, which gives every token of a completion the same advantage as in TRL's GRPO.
`--advantage_estimator leave_one_out` compares a token with the same place in the group's other completions. Rows need a
`prompt`, or are preference pairs with the prompt inside. `--max_prompt_length` drops longer prompts and says how many.
"""

from dataclasses import dataclass, field

from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config, get_quantization_config

from trl_tokenreward import FineGrainedGRPOConfig, FineGrainedGRPOTrainer
from trl_tokenreward.data.dropped import DroppedRows
from trl_tokenreward.data.formats import preference_prompt
from trl_tokenreward.ppo.prompts import REMEDIES, prepare_prompts
from trl_tokenreward.utils.loading import check_source, load_split, load_tokenizer


@dataclass
class GRPOScriptArguments(ScriptArguments):
    reward_model_path: str | None = field(
        default=None, metadata={"help": "The reward model: a folder, or a name on the Hub."}
    )
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Rows whose prompt has more tokens are dropped, and counted."}
    )


def main(script_args: GRPOScriptArguments, training_args: FineGrainedGRPOConfig, model_args: ModelConfig) -> None:
    if script_args.reward_model_path is None:
        raise ValueError("`--reward_model_path` is needed: a reward model's folder, or its name on the Hub.")
    check_source(script_args.reward_model_path, "reward model")
    training_args.model_init_kwargs = {
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        "revision": model_args.model_revision,
        **(training_args.model_init_kwargs or {}),
    }

    def prompts(split: str):
        dataset = load_split(script_args.dataset_name, split, script_args.dataset_config, script_args.dataset_streaming)
        if "prompt" not in dataset.column_names:
            dataset = dataset.map(lambda row: {"prompt": preference_prompt(row)}, remove_columns=["chosen", "rejected"])
        if script_args.max_prompt_length is None:
            return dataset
        place = {"trust_remote_code": training_args.trust_remote_code, **training_args.model_init_kwargs}
        tokenizer = load_tokenizer(model_args.model_name_or_path, init_kwargs=place)
        dropped = DroppedRows(REMEDIES)
        limits = {"max_prompt_length": script_args.max_prompt_length, "dropped": dropped}
        added, kwargs = ["input_ids"], training_args.chat_template_kwargs
        if kwargs:  # TRL gives them to the template of every prompt
            dataset = dataset.map(lambda row: {"chat_template_kwargs": kwargs})
            added.append("chat_template_kwargs")
        dataset = prepare_prompts(dataset, tokenizer, split, **limits).remove_columns(added)
        if not script_args.dataset_streaming:  # of a stream nothing is read yet
            print(f"Prompts of the {split} data set: {dropped.describe()}.")
        return dataset

    trainer = FineGrainedGRPOTrainer(
        model=model_args.model_name_or_path,
        reward_funcs=script_args.reward_model_path,
        args=training_args,
        train_dataset=prompts(script_args.dataset_train_split),
        eval_dataset=prompts(script_args.dataset_test_split) if training_args.eval_strategy != "no" else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
    trainer.accelerator.end_training()  # closes the process group, where there are several processes


if __name__ == "__main__":
    main(*TrlParser((GRPOScriptArguments, FineGrainedGRPOConfig, ModelConfig)).parse_args_and_config())
