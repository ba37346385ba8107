"""TRL 1.12's `PPOConfig`, for later versions of TRL, which have none.

It has the fields that a user sets, with TRL's names and defaults. TRL's trainer writes others into its configuration
while it is built; they are left out. This module can go when the supported range of TRL ends at 1.12 or a later TRL has
PPO again.
"""

from dataclasses import dataclass, field
from typing import Literal

from trl.trainer.base_config import _BaseConfig


@dataclass
class PPOConfig(_BaseConfig):
    r"""
    Training arguments of PPO. For those that are not listed see [`~transformers.TrainingArguments`].

    Parameters:
        num_ppo_epochs (`int`, *optional*, defaults to `4`):
            Passes over each batch of completions.
        num_mini_batches (`int`, *optional*, defaults to `1`):
            Optimizer steps in each pass.
        total_episodes (`int`, *optional*):
            Completions to train on, rounded up to whole updates. If `None`, `num_train_epochs` passes over the prompts.
        local_rollout_forward_batch_size (`int`, *optional*, defaults to `64`):
            Rows in each forward pass without gradients, for each process.
        num_sample_generations (`int`, *optional*, defaults to `10`):
            How many times in a run `generate_completions` prints samples for the evaluation prompts; 0 for never.
        response_length (`int`, *optional*, defaults to `53`):
            Most tokens in a completion.
        stop_token (`str`, *optional*):
            `"eos"` ends completions at the tokenizer's EOS. `None`: no stop token, unless `stop_token_id` is set; every
            completion has `response_length` tokens.
        stop_token_id (`int`, *optional*):
            Id of the token that ends completions. Exclusive with `stop_token`.
        temperature (`float`, *optional*, defaults to `0.7`):
            Sampling temperature, also of the policy that is trained.
        missing_eos_penalty (`float`, *optional*):
            Subtracted from the score of a completion that does not end with the stop token or, if there is none, that
            has no EOS. Positive.
        whiten_rewards (`bool`, *optional*, defaults to `False`):
            Whether to scale the rewards to unit variance over the batch.
        kl_coef (`float`, *optional*, defaults to `0.05`):
            Coefficient of the KL penalty.
        kl_estimator (`str`, *optional*, defaults to `"k1"`):
            `"k1"` or `"k3"`.
        cliprange (`float`, *optional*, defaults to `0.2`):
            Clip range of the policy's ratio.
        vf_coef (`float`, *optional*, defaults to `0.1`):
            Weight of the value loss.
        cliprange_value (`float`, *optional*, defaults to `0.2`):
            Clip range of the values.
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount.
        lam (`float`, *optional*, defaults to `0.95`):
            Lambda of GAE.
        sft_model_path (`str`, *optional*, defaults to `"EleutherAI/pythia-160m"`):
            Path of the policy, for scripts to read.
        reward_model_path (`str`, *optional*, defaults to `"EleutherAI/pythia-160m"`):
            Path of the reward model, for scripts to read.
        model_adapter_name (`str`, *optional*):
            Name of the adapter that is trained, when the policy has several.
        ref_adapter_name (`str`, *optional*):
            Name of the adapter that is the reference policy.
        ds3_gather_for_generation (`bool`, *optional*, defaults to `True`):
            Whether DeepSpeed ZeRO-3 gathers the policy's weights to generate. It has to.
        dataset_num_proc (`int`, *optional*):
            Processes that tokenize the prompts.

    > [!NOTE]
    > These parameters have default values different from [`~transformers.TrainingArguments`]:
    > - `logging_steps`: Defaults to `10` instead of `500`.
    > - `gradient_checkpointing`: Defaults to `True` instead of `False`.
    > - `bf16`: Defaults to `True` if `fp16` is not set, instead of `False`.
    > - `learning_rate`: Defaults to `3e-6` instead of `5e-5`.
    """

    # Parameters whose default values are overridden from TrainingArguments
    learning_rate: float = field(default=3e-6, metadata={"help": "The initial learning rate for AdamW."})

    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenize the prompts."})
    num_mini_batches: int = field(default=1, metadata={"help": "Optimizer steps in each pass over a batch."})
    total_episodes: int | None = field(
        default=None, metadata={"help": "Completions to train on, rounded up to whole updates."}
    )
    local_rollout_forward_batch_size: int = field(
        default=64, metadata={"help": "Rows in each forward pass without gradients, for each process."}
    )
    num_sample_generations: int = field(
        default=10, metadata={"help": "How many times in a run samples for the evaluation prompts are printed."}
    )
    response_length: int = field(default=53, metadata={"help": "Most tokens in a completion."})
    stop_token: Literal["eos"] | None = field(
        default=None,
        metadata={"help": "'eos' ends completions at the tokenizer's EOS. Exclusive with `stop_token_id`."},
    )
    stop_token_id: int | None = field(
        default=None, metadata={"help": "Id of the token that ends completions. Exclusive with `stop_token`."}
    )
    temperature: float = field(default=0.7, metadata={"help": "Sampling temperature."})
    missing_eos_penalty: float | None = field(
        default=None,
        metadata={
            "help": "Subtracted from the score of a completion without the stop token, or without EOS. Positive."
        },
    )
    sft_model_path: str = field(default="EleutherAI/pythia-160m", metadata={"help": "Path of the policy."})
    push_to_hub: bool = field(default=False, metadata={"help": "Whether to push the model to the Hub after training."})
    reward_model_path: str = field(default="EleutherAI/pythia-160m", metadata={"help": "Path of the reward model."})
    model_adapter_name: str | None = field(default=None, metadata={"help": "Name of the adapter that is trained."})
    ref_adapter_name: str | None = field(
        default=None, metadata={"help": "Name of the adapter that is the reference policy."}
    )
    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over each batch of completions."})
    whiten_rewards: bool = field(default=False, metadata={"help": "Whether to whiten the rewards."})
    kl_coef: float = field(default=0.05, metadata={"help": "Coefficient of the KL penalty."})
    kl_estimator: Literal["k1", "k3"] = field(default="k1", metadata={"help": "Estimator of the KL divergence."})
    cliprange: float = field(default=0.2, metadata={"help": "Clip range of the policy's ratio."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    cliprange_value: float = field(default=0.2, metadata={"help": "Clip range of the values."})
    gamma: float = field(default=1.0, metadata={"help": "Discount."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of GAE."})
    ds3_gather_for_generation: bool = field(
        default=True, metadata={"help": "Whether DeepSpeed ZeRO-3 gathers the policy's weights to generate."}
    )
