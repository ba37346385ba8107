# /// script
# dependencies = ["trl-tokenreward[peft]"]
# ///
"""
Train a token reward model on preference pairs, HH-RLHF by default.

Full training:

    python examples/train_token_reward.py \
        --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct \
        --dataset_name Anthropic/hh-rlhf --dataset_config harmless-base \
        --output_dir Qwen2.5-0.5B-Token-Reward \
        --per_device_train_batch_size 8 \
        --num_train_epochs 1 \
        --learning_rate 1.0e-5 \
        --eval_strategy steps --eval_steps 100 \
        --max_length 1024

LoRA:

    python examples/train_token_reward.py \
        --model_name_or_path Qwen/Qwen2.5-0.5B-Instruct \
        --dataset_name Anthropic/hh-rlhf --dataset_config harmless-base \
        --output_dir Qwen2.5-0.5B-Token-Reward-LoRA \
        --per_device_train_batch_size 8 \
        --num_train_epochs 1 \
        --learning_rate 1.0e-4 \
        --eval_strategy steps --eval_steps 100 \
        --max_length 1024 \
        --use_peft --lora_task_type SEQ_CLS --lora_r 32 --lora_alpha 16

`--dataset_name` may be a local file (JSON lines, compressed or not, CSV or Parquet) or a folder. `--max_edit_ratio 0.5`
drops pairs that are no minimal edits.
"""

from trl import ModelConfig, ScriptArguments, TrlParser, get_peft_config, get_quantization_config

from trl_tokenreward import TokenRewardConfig, TokenRewardTrainer
from trl_tokenreward.utils.loading import load_split


def main(script_args: ScriptArguments, training_args: TokenRewardConfig, model_args: ModelConfig) -> None:
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training_args.model_init_kwargs or {}),
    }

    def split(name: str):
        return load_split(
            script_args.dataset_name, name, script_args.dataset_config, streaming=script_args.dataset_streaming
        )

    trainer = TokenRewardTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        train_dataset=split(script_args.dataset_train_split),
        eval_dataset=split(script_args.dataset_test_split) if training_args.eval_strategy != "no" else None,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
    trainer.accelerator.end_training()  # closes the process group, where there are several processes


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments, TokenRewardConfig, ModelConfig)).parse_args_and_config())
