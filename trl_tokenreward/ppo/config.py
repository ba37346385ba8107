import copy
import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from .._trl import PPOConfig


# Fields of `TrainingArguments` that mean nothing to PPO's rollouts, with the only value that they may have.
_WITHOUT_EFFECT = {
    "auto_find_batch_size": False,
    "bf16_full_eval": False,
    "dataloader_drop_last": False,
    "dataloader_num_workers": 0,
    "dataloader_persistent_workers": False,
    "dataloader_prefetch_factor": None,
    "eval_accumulation_steps": None,
    "fp16_full_eval": False,
    "label_smoothing_factor": 0.0,
    "neftune_noise_alpha": None,
    "prediction_loss_only": False,
    "train_sampling_strategy": "random",
    "use_liger_kernel": False,
}
# What has an effect in one of vLLM's modes alone.
_VLLM_FIELDS = {
    "colocate": (
        "vllm_model_impl",
        "vllm_gpu_memory_utilization",
        "vllm_max_model_length",
        "vllm_tensor_parallel_size",
        "vllm_enable_sleep_mode",
    ),
    "server": (
        "vllm_server_base_url",
        "vllm_server_host",
        "vllm_server_port",
        "vllm_server_timeout",
        "vllm_group_port",
    ),
}
_VLLM_LOWEST_TEMPERATURE = 0.01
# Fields that TRL's PPOTrainer fills in while it is built. They are results, so there is nothing to set.
_COMPUTED = (
    "world_size",
    "num_total_batches",
    "micro_batch_size",
    "local_batch_size",
    "batch_size",
    "local_mini_batch_size",
    "mini_batch_size",
)


@dataclass
class FineGrainedPPOConfig(PPOConfig):
    r"""
    Configuration class for the [`FineGrainedPPOTrainer`].

    It has every field of TRL 1.12's `PPOConfig`, with its defaults, on every version of TRL, and the fields that say how
    rewards are spread over tokens. Only what is specific to PPO is listed; for the rest see
    [`~transformers.TrainingArguments`].

    One *update* collects a batch of `per_device_train_batch_size * gradient_accumulation_steps * processes` completions
    and takes `num_ppo_epochs * num_mini_batches` optimizer steps on it. `max_steps`, `logging_steps`, `eval_steps`,
    `save_steps` and the learning rate schedule count optimizer steps, as everywhere in [`~transformers.Trainer`].

    Parameters:
        > Parameters that control the rewards

        reward_signal (`str`, *optional*):
            What a completion's return is made of. `"token_scores"`: the reward model's score of each token; the return is
            their sum. `"sequence_score"`: the reward model's score of the whole completion. If `None`, the token scores
            where the reward model has them and the sequence score elsewhere.
        reward_density (`str`, *optional*):
            How the return is spread over the completion, at equal total: `"token"`, `"sentence"` (each sentence's share on
            its last token) or `"sequence"` (all of it on the last token, as PPO always had it). With
            `reward_signal="sequence_score"` a token's share is the difference that it makes to the score of the prefix
            (potential-based shaping). If `None`, `"token"` for token scores and `"sequence"` for a sequence score.
        token_score_transform (`str`, *optional*):
            `"log_sigmoid"` makes a token's score, the log-odds that an annotator would leave the token, the log-probability
            of that; a completion's total is then the log-probability that nobody would touch it. `"none"` takes scores as
            they are. If `None`, `"log_sigmoid"` for the token scores of a reward model.
        reward_scale (`float`, *optional*):
            Factor on the scores. If `None`, 0.2 for the token scores of a reward model and 1 for everything else. With
            log-probabilities only its ratio to `kl_coef` counts, but for the clip ranges of values and rewards: at equal
            numbers the best policy is the reference given that nobody would touch its completions, and at a quarter as
            large a `kl_coef`, as by default, that to the fourth power.
        center_rewards (`bool`, *optional*):
            Whether to subtract the batch's mean: of the token scores over all completion tokens, so that a longer
            completion is not paid for its length; of the sequence scores over all completions. It comes after
            `reward_scale`. If `None`, only for the token scores of a reward model.
        reward_clip (`float`, *optional*):
            Clips each token's score to `[-reward_clip, reward_clip]`, after centring; with `reward_signal="sequence_score"`
            it clips the sequence score. Infinity is no bound. If `None`, 1 for the token scores of a reward model and no
            bound for everything else.
        average_token_scores (`bool`, *optional*, defaults to `False`):
            Whether to divide the token scores by the length of the completion, so that the return is their mean and not
            their sum.
        sequence_score_coef (`float`, *optional*, defaults to `0.0`):
            With `reward_signal="token_scores"` and a [`TokenRewardModel`]: weight with which the sequence score, scaled,
            centred and clipped like the others, is added on the completion's last token. It costs one more pass of the reward
            model.
        hold_length (`bool`, *optional*):
            Whether what the advantages say of the length of completions is taken out of them, and replaced by what keeps the
            mean length where it is ([`~ppo.functional.hold_mean_length`]). It needs a stop token. If `None`, only for the token
            scores of a reward model, where there is a stop token.
        length_target (`float`, *optional*):
            The mean length that `hold_length` keeps, in tokens. If `None`, that of the first update's completions.
        kl_target (`float`, *optional*):
            Mean KL of a completion to the reference, in nats, above which the coefficient of the KL penalty grows, by at
            most a fifth an update; below, it falls again, but not under `kl_coef`
            ([`~ppo.functional.adapted_kl_coef`]). If `None`, the coefficient stays `kl_coef`.
        bootstrap_truncated (`bool`, *optional*, defaults to `False`):
            Whether a completion that was cut off at `response_length` goes on with the value of its last state. If `False`
            it ends there, as in TRL.
        eval_temperature (`float`, *optional*):
            Sampling temperature in `evaluate` and `generate_completions`; 0 is greedy decoding. If `None`, `temperature`.

        > Parameters that control the logging of completions

        log_completions (`bool`, *optional*, defaults to `False`):
            Whether, at each log, completions of the last update are written to `output_dir/completions` with the score,
            reward, KL, value and advantage of every token, and logged to TensorBoard, trackio and wandb where those are on.
            `trl-tokenreward score --run output_dir` shows them.
        num_completions_to_log (`int`, *optional*, defaults to `8`):
            How many. Where the same prompts come up again, the same are chosen.

        > Parameters of generation with vLLM, named as in TRL

        use_vllm (`bool`, *optional*, defaults to `False`):
            Whether vLLM samples the completions, in training and in evaluation, instead of transformers. It draws random
            numbers of its own: samples then do not follow from `seed` alone, and a resumed run is not repeated exactly.
        vllm_mode (`str`, *optional*, defaults to `"colocate"`):
            `"colocate"`: in the trainer's processes, on their GPUs. `"server"`: on a server that `vllm serve` has started.
        vllm_model_impl (`str`, *optional*, defaults to `"vllm"`):
            For `"colocate"`. `"vllm"`: vLLM's own implementation of the model. `"transformers"`: that of transformers.
        vllm_gpu_memory_utilization (`float`, *optional*, defaults to `0.3`):
            For `"colocate"`. Share of a GPU's memory that vLLM takes.
        vllm_max_model_length (`int`, *optional*):
            For `"colocate"`. Most tokens of a prompt and its completion. If `None`, the model's.
        vllm_tensor_parallel_size (`int`, *optional*, defaults to `1`):
            For `"colocate"`. GPUs that share one copy of the model.
        vllm_enable_sleep_mode (`bool`, *optional*, defaults to `False`):
            For `"colocate"`. Whether vLLM gives up its memory between rollouts.
        vllm_server_base_url (`str`, *optional*):
            For `"server"`. The server's address, such as `"http://localhost:8000"`, in place of host and port.
        vllm_server_host (`str`, *optional*, defaults to `"0.0.0.0"`):
            For `"server"`.
        vllm_server_port (`int`, *optional*, defaults to `8000`):
            For `"server"`.
        vllm_server_timeout (`float`, *optional*, defaults to `240.0`):
            For `"server"`. Seconds to wait for it to be up.
        vllm_group_port (`int`, *optional*, defaults to `51216`):
            For `"server"`. Port over which the weights are sent.

        > Parameters of TRL's PPO

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
            Subtracted from the score of a completion without the stop token. Positive.
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
            Processes that tokenise the prompts.
        world_size, num_total_batches, micro_batch_size, local_batch_size, batch_size, local_mini_batch_size, mini_batch_size:
            Computed by TRL's trainer from the others; setting them is an error.

    > [!NOTE]
    > These parameters have default values different from [`~transformers.TrainingArguments`]:
    > - `logging_steps`: Defaults to `10` instead of `500`.
    > - `gradient_checkpointing`: Defaults to `True` instead of `False`.
    > - `bf16`: Defaults to `True` if `fp16` is not set, instead of `False`.
    > - `learning_rate`: Defaults to `3e-6` instead of `5e-5`.
    """

    # Parameters whose default values are overridden from TrainingArguments
    learning_rate: float = field(default=3e-6, metadata={"help": "The initial learning rate for AdamW."})

    # Parameters that control the rewards
    reward_signal: Literal["token_scores", "sequence_score"] | None = field(
        default=None,
        metadata={
            "help": "What a completion's return is made of: the sum of its token scores, or its sequence score. If unset, "
            "token scores where the reward model has them."
        },
    )
    reward_density: Literal["token", "sentence", "sequence"] | None = field(
        default=None,
        metadata={
            "help": "How the return is spread over the completion, at equal total. If unset, over tokens for token scores, "
            "on the last token for a sequence score."
        },
    )
    token_score_transform: Literal["none", "log_sigmoid"] | None = field(
        default=None,
        metadata={
            "help": "'log_sigmoid' makes log-odds log-probabilities. If unset, for the token scores of a reward model alone."
        },
    )
    reward_scale: float | None = field(
        default=None,
        metadata={"help": "Factor on the scores. If unset, 0.2 for the token scores of a reward model, 1 otherwise."},
    )
    center_rewards: bool | None = field(
        default=None,
        metadata={
            "help": "Whether to subtract the batch's mean score. If unset, for the token scores of a reward model alone."
        },
    )
    reward_clip: float | None = field(
        default=None,
        metadata={
            "help": "Bound on the size of each score. If unset, 1 for the token scores of a reward model, none otherwise."
        },
    )
    average_token_scores: bool = field(
        default=False,
        metadata={"help": "Whether the return is the mean of the token scores instead of their sum."},
    )
    sequence_score_coef: float = field(
        default=0.0,
        metadata={"help": "Weight with which the sequence score is added to token scores, on the last token."},
    )
    hold_length: bool | None = field(
        default=None,
        metadata={
            "help": "Whether advantages are kept from changing the mean length of completions. If unset, for the token scores "
            "of a reward model alone."
        },
    )
    length_target: float | None = field(
        default=None,
        metadata={"help": "Mean length that `hold_length` keeps, in tokens. If unset, that of the first update."},
    )
    kl_target: float | None = field(
        default=None,
        metadata={
            "help": "Mean KL of a completion, in nats, above which the KL penalty's coefficient grows. If unset, it stays "
            "`kl_coef`."
        },
    )
    bootstrap_truncated: bool = field(
        default=False,
        metadata={"help": "Whether a completion that was cut off goes on with the value of its last state."},
    )
    eval_temperature: float | None = field(
        default=None,
        metadata={"help": "Sampling temperature in evaluation; 0 is greedy. If unset, `temperature`."},
    )

    # Parameters that control the logging of completions
    log_completions: bool = field(
        default=False,
        metadata={
            "help": "Whether, at each log, completions of the last update are written to `output_dir/completions` with the "
            "score, reward, KL, value and advantage of every token, and logged to TensorBoard, trackio and wandb."
        },
    )
    num_completions_to_log: int = field(default=8, metadata={"help": "How many completions `log_completions` logs."})

    # Parameters of generation with vLLM, named as in TRL
    use_vllm: bool = field(
        default=False, metadata={"help": "Whether vLLM samples the completions instead of transformers."}
    )
    vllm_mode: str = field(
        default="colocate",
        metadata={
            "help": "'colocate': in the trainer's processes, on their GPUs. 'server': on a server that `vllm serve` has "
            "started."
        },
    )
    vllm_model_impl: str = field(
        default="vllm",
        metadata={"help": "For 'colocate'. Implementation of the model: 'vllm' or 'transformers'."},
    )
    vllm_enable_sleep_mode: bool = field(
        default=False,
        metadata={"help": "For 'colocate'. Whether vLLM gives up its memory between rollouts."},
    )
    vllm_server_base_url: str | None = field(
        default=None,
        metadata={
            "help": "For 'server'. Its address, such as 'http://localhost:8000', in place of `vllm_server_host` and "
            "`vllm_server_port`."
        },
    )
    vllm_server_host: str = field(default="0.0.0.0", metadata={"help": "For 'server'. Its host."})
    vllm_server_port: int = field(default=8000, metadata={"help": "For 'server'. Its port."})
    vllm_server_timeout: float = field(
        default=240.0, metadata={"help": "For 'server'. Seconds to wait for it to be up."}
    )
    vllm_group_port: int = field(
        default=51216, metadata={"help": "For 'server'. Port over which the weights are sent."}
    )
    vllm_gpu_memory_utilization: float = field(
        default=0.3, metadata={"help": "For 'colocate'. Share of a GPU's memory that vLLM takes."}
    )
    vllm_max_model_length: int | None = field(
        default=None,
        metadata={
            "help": "For 'colocate'. Most tokens of a prompt and its completion. If unset, as many as the model takes."
        },
    )
    vllm_tensor_parallel_size: int = field(
        default=1, metadata={"help": "For 'colocate'. GPUs that share one copy of the model."}
    )

    # Parameters of TRL's PPO
    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenise the prompts."})
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
        default=None, metadata={"help": "Subtracted from the score of a completion without the stop token. Positive."}
    )
    sft_model_path: str = field(default="EleutherAI/pythia-160m", metadata={"help": "Path of the policy."})
    world_size: int | None = field(default=None, metadata={"help": "Computed; not to be set."})
    num_total_batches: int | None = field(default=None, metadata={"help": "Computed; not to be set."})
    micro_batch_size: int | None = field(default=None, metadata={"help": "Computed; not to be set."})
    local_batch_size: int | None = field(default=None, metadata={"help": "Computed; not to be set."})
    batch_size: int | None = field(default=None, metadata={"help": "Computed; not to be set."})
    local_mini_batch_size: int | None = field(default=None, metadata={"help": "Computed; not to be set."})
    mini_batch_size: int | None = field(default=None, metadata={"help": "Computed; not to be set."})
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

    @classmethod
    def from_ppo_config(cls, config: PPOConfig) -> "FineGrainedPPOConfig":
        """A copy of one of TRL's `PPOConfig` in this class; what TRL's trainer computed into it is left behind."""
        known = {f.name for f in fields(cls) if f.init}
        values = {f.name: getattr(config, f.name) for f in fields(config) if f.init and f.name in known}
        return cls(**{name: value for name, value in values.items() if name not in _COMPUTED})

    def __post_init__(self):
        if self.deepspeed:
            # transformers would read `world_size`, which is a field here as in TRL's PPO, before there is one.
            raise ValueError(
                "`deepspeed`: PPO takes DeepSpeed's configuration from accelerate alone. Launch with `accelerate launch "
                "--config_file` and one of examples/accelerate_configs, or name your file in it as `deepspeed_config_file`."
            )
        super().__post_init__()
        for name in _COMPUTED:
            if getattr(self, name) is not None:
                raise ValueError(f"`{name}` is computed from the other batch sizes and has no effect: leave it unset.")
        for name, neutral in _WITHOUT_EFFECT.items():
            if getattr(self, name, neutral) != neutral:
                raise ValueError(f"`{name}={getattr(self, name)!r}` has no effect on PPO: leave it at {neutral!r}.")
        for name in ("logging_strategy", "eval_strategy", "save_strategy"):
            if getattr(self, name) == "epoch":
                raise ValueError(f"`{name}='epoch'`: PPO's loop has one epoch, the whole run. Use 'steps'.")
        _check_choice("kl_estimator", self.kl_estimator, ("k1", "k3"))
        _check_choice("stop_token", self.stop_token, (None, "eos"))
        _check_choice("reward_signal", self.reward_signal, (None, "token_scores", "sequence_score"))
        _check_choice("token_score_transform", self.token_score_transform, (None, "none", "log_sigmoid"))
        if self.token_score_transform == "log_sigmoid" and self.reward_signal == "sequence_score":
            raise ValueError("`token_score_transform` has no effect on `reward_signal='sequence_score'`.")
        _check_choice("reward_density", self.reward_density, (None, "token", "sentence", "sequence"))
        for name in (
            "num_mini_batches",
            "num_ppo_epochs",
            "local_rollout_forward_batch_size",
            "response_length",
            "temperature",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")
        for name in ("total_episodes", "missing_eos_penalty", "reward_clip", "kl_target", "length_target"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")
        if self.eval_temperature is not None and self.eval_temperature < 0:
            raise ValueError(f"`eval_temperature` must not be negative, got {self.eval_temperature}.")
        if self.stop_token is not None and self.stop_token_id is not None:
            raise ValueError("Set `stop_token` or `stop_token_id`, not both.")
        has_stop_token = self.stop_token is not None or self.stop_token_id is not None
        if self.missing_eos_penalty is not None and not has_stop_token:
            raise ValueError("`missing_eos_penalty` needs a stop token: set `stop_token='eos'` or `stop_token_id`.")
        if self.hold_length and not has_stop_token:
            raise ValueError(
                "`hold_length` has no effect without a stop token, for then every completion has `response_length` tokens: "
                "set `stop_token='eos'` or `stop_token_id`."
            )
        if self.length_target is not None and not self.hold_length:
            raise ValueError("`length_target` has no effect without `hold_length=True`.")
        if self.total_episodes is not None and self.max_steps > 0:
            raise ValueError("Set `total_episodes` or `max_steps`, not both: each says how long the run is.")
        if self.average_token_scores and self.reward_signal == "sequence_score":
            raise ValueError("`average_token_scores` has no effect on `reward_signal='sequence_score'`.")
        if not (self.sequence_score_coef >= 0 and math.isfinite(self.sequence_score_coef)):
            raise ValueError(f"`sequence_score_coef` must be finite and not negative, got {self.sequence_score_coef}.")
        if self.sequence_score_coef > 0 and self.reward_signal == "sequence_score":
            raise ValueError("`sequence_score_coef` has no effect on `reward_signal='sequence_score'`.")
        if self.kl_target is not None and self.kl_coef <= 0:
            raise ValueError("`kl_target` adapts `kl_coef` by factors, so it needs one above 0.")
        if self.model_adapter_name is not None and self.ref_adapter_name is None:
            raise ValueError("`model_adapter_name` has an effect only together with `ref_adapter_name`.")
        if self.num_completions_to_log < 1:
            raise ValueError(f"`num_completions_to_log` must be at least 1, got {self.num_completions_to_log}.")
        if self.num_completions_to_log != 8 and not self.log_completions:
            raise ValueError("`num_completions_to_log` has no effect without `log_completions=True`.")
        if self.log_completions and self.logging_strategy == "no":
            raise ValueError(
                "`log_completions` has no effect with `logging_strategy='no'`: it logs when the trainer does."
            )
        self._check_vllm()

    def with_reward_defaults(self, scores_tokens: bool) -> "FineGrainedPPOConfig":
        """A copy in which the settings of rewards that are `None` have the values that they stand for.

        Args:
            scores_tokens (`bool`):
                Whether the rewards are the token scores of a reward model.
        """
        stop_token = self.stop_token is not None or self.stop_token_id is not None
        defaults = {
            "token_score_transform": "log_sigmoid" if scores_tokens else "none",
            "reward_scale": 0.2 if scores_tokens else 1.0,
            "center_rewards": scores_tokens,
            "reward_clip": 1.0 if scores_tokens else math.inf,
            "hold_length": scores_tokens and stop_token,
        }
        args = copy.copy(self)
        for name, value in defaults.items():
            if getattr(args, name) is None:
                setattr(args, name, value)
        return args

    def _check_vllm(self) -> None:
        _check_choice("vllm_mode", self.vllm_mode, tuple(_VLLM_FIELDS))
        _check_choice("vllm_model_impl", self.vllm_model_impl, ("vllm", "transformers"))
        changed = {f.name for f in fields(self) if f.name.startswith("vllm_") and getattr(self, f.name) != f.default}
        if changed and not self.use_vllm:
            raise ValueError(f"`{min(changed)}` has no effect without `use_vllm=True`.")
        for mode, names in _VLLM_FIELDS.items():
            for name in names:
                if name in changed and mode != self.vllm_mode:
                    hint = " Give it to `vllm serve`." if mode == "colocate" else ""
                    raise ValueError(f"`{name}` has no effect in `vllm_mode={self.vllm_mode!r}`.{hint}")
        if self.vllm_server_base_url is not None and changed & {"vllm_server_host", "vllm_server_port"}:
            raise ValueError("Set `vllm_server_base_url`, or `vllm_server_host` and `vllm_server_port`, not both.")
        for name in ("temperature", "eval_temperature"):
            if self.use_vllm and 0 < (getattr(self, name) or 0) < _VLLM_LOWEST_TEMPERATURE:
                raise ValueError(
                    f"`{name}={getattr(self, name)}`: vLLM samples at {_VLLM_LOWEST_TEMPERATURE} instead of at less."
                )


def _check_choice(name: str, value: Any, choices: tuple) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {choices}, got {value!r}.")
