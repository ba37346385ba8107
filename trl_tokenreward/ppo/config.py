"""Configuration of [`FineGrainedPPOTrainer`]."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from transformers.utils import logging

from .._trl import PPOConfig
from ..utils.validation import check_choice, check_fields, check_least
from .reward_settings import RewardKind, RewardSettings


logger = logging.get_logger(__name__)

# Fields of `TrainingArguments` that mean nothing to PPO's rollouts and evaluation, with the only value that they may
# have.
_WITHOUT_EFFECT: dict[str, Any] = {
    "auto_find_batch_size": False,
    "average_tokens_across_devices": True,
    "batch_eval_metrics": False,
    "bf16_full_eval": False,
    "dataloader_drop_last": False,
    "dataloader_num_workers": 0,
    "dataloader_persistent_workers": False,
    "dataloader_prefetch_factor": None,
    "eval_accumulation_steps": None,
    "eval_do_concat_batches": True,
    "eval_use_gather_object": False,
    "fp16_full_eval": False,
    "include_for_metrics": [],
    "include_num_input_tokens_seen": "no",
    "label_names": None,
    "label_smoothing_factor": 0.0,
    "liger_kernel_config": None,
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
# Fields of TRL 1.12 that its PPOTrainer fills in while it is built. They are results, so there is nothing to set.
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
class FineGrainedPPOConfig(RewardSettings, PPOConfig):
    r"""
    Configuration class for the [`FineGrainedPPOTrainer`].

    It has every field of TRL 1.12's `PPOConfig`, with its defaults, on every version of TRL (see
    [`~_trl_ppo_config.PPOConfig`]), and the fields that are listed here.

    One *update* collects a batch of `per_device_train_batch_size * gradient_accumulation_steps * processes` completions
    and takes `num_ppo_epochs * num_mini_batches` optimizer steps on it. `max_steps`, `logging_steps`, `eval_steps`,
    `save_steps` and the learning rate schedule count optimizer steps, as everywhere in [`~transformers.Trainer`].

    Parameters:
        > Parameters that control the data preprocessing

        max_prompt_length (`int`, *optional*):
            Rows whose prompt has more tokens are dropped and counted, see [`FineGrainedPPOTrainer.dropped`]. If `None`,
            no row is dropped, and a prompt that leaves no room for `response_length` tokens is an error.

        > Parameters that control the rewards

        reward_signal (`str`, *optional*):
            What the return of a completion is. `"token_scores"`: the sum of the reward model's scores of its tokens.
            `"sequence_score"`: the reward model's score of the whole completion. `None` selects the token scores if the
            reward model has them and `reward_density` is not `"potential"`, and the sequence score otherwise.
        reward_density (`str`, *optional*):
            How the return is spread over the completion, at equal total. Token scores: `"token"`, `"sentence"` (the sum
            of each sentence on its last token) or `"sequence"` (the sum of all on the last token). Sequence score:
            `"sequence"` (all of it on the last token, as in ordinary PPO) or `"potential"` (each token gets the
            difference that it makes to the score of the prefix: potential-based shaping, Ng et al., 1999). `None`
            selects `"token"` for token scores and `"sequence"` for a sequence score.
        token_score_transform (`str`, *optional*):
            A token's score is the log-odds that an annotator leaves the token unchanged. `"log_sigmoid"` turns it into
            the log-probability, so a completion's total is the log-probability that no token is changed. `"none"` uses
            the scores as they are. `None` selects `"log_sigmoid"` for the token scores of a reward model, else
            `"none"`.
        reward_scale (`float`, *optional*):
            Factor on the scores. `None` selects 0.2 for the token scores of a reward model and 1 for everything else.
            Only the ratio to `kl_coef` shapes the best policy: it is the reference, weighted by the probability that no
            token is changed, to the power `reward_scale / kl_coef`, 4 by default. The clip ranges of values and rewards
            depend on the factor itself.
        center_rewards (`bool`, *optional*):
            Whether to subtract the mean over the batch, after `reward_scale`. Token scores lose their mean over all
            completion tokens, so length alone earns nothing; sequence scores lose their mean over completions. `None`
            selects `True` for the token scores of a reward model, else `False`.
        reward_clip (`float`, *optional*):
            Clips each score to `[-reward_clip, reward_clip]`, after centring: token scores one by one, or the sequence
            score. Infinity is no bound. `None` selects 1 for the token scores of a reward model, else no bound.
        sequence_score_coef (`float`, *optional*, defaults to `0.0`):
            Weight of the sequence score that is added to token scores, on the completion's last token. It is scaled,
            centred and clipped like the token scores. It needs a [`TokenRewardModel`] and one more pass of it.
        hold_length (`bool`, *optional*):
            Whether to keep the mean length of completions ([`~ppo.functional.hold_mean_length`]): advantages lose the
            component that changes the length, and get one that brings it back. It needs a stop token. `None` selects
            `True` for the token scores of a reward model with a stop token, else `False`.
        target_length (`float`, *optional*):
            The mean length that `hold_length` keeps, in tokens. `None` selects that of the first update's completions.
        reward_aggregation (`str`, *optional*, defaults to `"sum"`):
            How several rewards become one. `"sum"`: each is shaped by itself, and they are added up with their weights.
            `"min"`: of an ensemble of reward models of one kind, at each token the smallest score counts, before it is
            shaped (compare Coste et al., 2024).
        reward_weights (`list[float]`, *optional*):
            The weight of each of several rewards in the sum. `None` selects 1 for each.
        reward_settings (`list[dict]`, *optional*):
            For each of several rewards, a dictionary of what it has for itself of `reward_signal`, `reward_density`,
            `token_score_transform`, `reward_scale`, `center_rewards` and `reward_clip`. The rest it has from the fields
            of these names.
        kl_target (`float`, *optional*):
            Target for the mean KL of a completion to the reference, in nats. Above it, the coefficient of the KL
            penalty grows by at most 20 % per update; below it, the coefficient falls, but not under `kl_coef`
            ([`~ppo.functional.adapted_kl_coef`]). With `None` the coefficient stays `kl_coef`.
        bootstrap_truncated (`bool`, *optional*, defaults to `False`):
            Whether the return of a completion that is cut off at `response_length` includes the value of its last
            state. If `False`, the return ends there, as in TRL.
        eval_temperature (`float`, *optional*):
            Sampling temperature in `evaluate` and `generate_completions`; 0 is greedy decoding. `None` selects
            `temperature`.

        > Parameters that control the models

        share_base (`bool`, *optional*):
            Whether policy, reference, value and reward model hold the weights of one frozen base together, each under
            an adapter of its own ([`~ppo.one_base`]). The value model that is not passed is then an adapter: a copy of
            the reward model's, or a new one of the policy's kind. `None` selects `True` where `peft_config` is given.
            With `False` the value model is trained in full, and each model holds weights of its own.
        share_value_backbone (`bool`, *optional*, defaults to `False`):
            Whether values are a head's on the policy's own hidden states ([`~ppo.value_head.ValueHead`]) instead of a
            value model's. It takes about half the time and memory of training. The value loss then changes the policy
            too, with the weight `vf_coef`.

        > Parameters that control the logging of completions

        log_completions (`bool`, *optional*, defaults to `False`):
            Whether to write completions of the last update at each log, with the score, reward, KL, value and advantage
            of every token: to `output_dir/completions`, and to TensorBoard, trackio and wandb if they are on.
            `trl-tokenreward score --run output_dir` shows them.
        num_completions_to_log (`int`, *optional*, defaults to `8`):
            Completions per log. A prompt that was logged once is logged again when it recurs.

        > Parameters of generation with vLLM, named as in TRL

        use_vllm (`bool`, *optional*, defaults to `False`):
            Whether vLLM samples the completions instead of transformers, in training and in evaluation. vLLM draws its
            own random numbers, so samples do not depend on `seed` alone and a resumed run differs.
        vllm_mode (`str`, *optional*, defaults to `"colocate"`):
            `"colocate"`: in the trainer's processes, on their GPUs. `"server"`: on a server that `vllm serve` has
            started.
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
    """

    # Parameters that control the data preprocessing
    max_prompt_length: int | None = field(
        default=None,
        metadata={
            "help": "Rows whose prompt has more tokens are dropped and counted. If `None`, no row is dropped, and a "
            "prompt that leaves no room for `response_length` tokens is an error."
        },
    )

    # Parameters that control the rewards
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "The weight of each of several rewards in the sum. If unset, 1 for each."}
    )
    sequence_score_coef: float = field(
        default=0.0,
        metadata={"help": "Weight with which the sequence score is added to token scores, on the last token."},
    )
    kl_target: float | None = field(
        default=None,
        metadata={
            "help": "Mean KL of a completion, in nats, above which the KL penalty's coefficient grows. If unset, it "
            "stays `kl_coef`."
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

    # Parameters that control the models
    share_base: bool | None = field(
        default=None,
        metadata={
            "help": "Whether policy, reference, value and reward model share one frozen base, each under an adapter. "
            "If unset, where `peft_config` is given."
        },
    )

    share_value_backbone: bool = field(
        default=False,
        metadata={"help": "Whether values are a head's on the policy's own hidden states, and not a value model's."},
    )

    # Parameters that control the logging of completions
    log_completions: bool = field(
        default=False,
        metadata={
            "help": "Whether, at each log, completions of the last update are written to `output_dir/completions` with "
            "the score, reward, KL, value and advantage of every token, and logged to TensorBoard, trackio and wandb."
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
            "help": "'colocate': in the trainer's processes, on their GPUs. 'server': on a server that `vllm serve` "
            "has started."
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

    @classmethod
    def from_ppo_config(cls, config: PPOConfig) -> "FineGrainedPPOConfig":
        """A copy of one of TRL's `PPOConfig` in this class; what TRL's trainer computed into it is left behind."""
        known = {f.name for f in fields(cls) if f.init}
        values = {f.name: getattr(config, f.name) for f in fields(config) if f.init and f.name in known}
        return cls(**{name: value for name, value in values.items() if name not in _COMPUTED})

    def __post_init__(self) -> None:
        """Check every setting, and refuse those that would have no effect."""
        if self.deepspeed:
            # transformers would read `world_size`, which is a field here as in TRL's PPO, before there is one.
            raise ValueError(
                "`deepspeed`: PPO takes DeepSpeed's configuration from accelerate alone. Launch with `accelerate "
                "launch --config_file` and one of examples/accelerate_configs, or name your file in it as "
                "`deepspeed_config_file`."
            )
        check_fields(self)
        super().__post_init__()
        for name in {f.name for f in fields(self)} & set(_COMPUTED):
            if getattr(self, name) is not None:
                raise ValueError(f"`{name}` is computed from the other batch sizes and has no effect: leave it unset.")
        for name, neutral in _WITHOUT_EFFECT.items():
            if getattr(self, name, neutral) != neutral:
                raise ValueError(f"`{name}={getattr(self, name)!r}` has no effect on PPO: leave it at {neutral!r}.")
        for name in ("logging_strategy", "eval_strategy", "save_strategy"):
            if getattr(self, name) == "epoch":
                raise ValueError(f"`{name}='epoch'`: PPO's loop has one epoch, the whole run. Use 'steps'.")
        check_choice("kl_estimator", self.kl_estimator, ("k1", "k3"))
        check_choice("stop_token", self.stop_token, (None, "eos"))
        self.check_rewards()
        for name in (
            "num_mini_batches",
            "num_ppo_epochs",
            "local_rollout_forward_batch_size",
            "response_length",
            "temperature",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")
        for name in ("max_prompt_length", "total_episodes", "missing_eos_penalty", "kl_target"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)}.")
        if self.eval_temperature is not None and self.eval_temperature < 0:
            raise ValueError(f"`eval_temperature` must not be negative, got {self.eval_temperature}.")
        if self.stop_token is not None and self.stop_token_id is not None:
            raise ValueError("Set `stop_token` or `stop_token_id`, not both.")
        if self.hold_length and not self.has_stop_token:
            raise ValueError(
                "`hold_length` has no effect without a stop token, for then every completion has `response_length` "
                "tokens: set `stop_token='eos'` or `stop_token_id`."
            )
        if self.target_length is not None and not self.hold_length:
            raise ValueError("`target_length` has no effect without `hold_length=True`.")
        if self.total_episodes is not None and self.max_steps > 0:
            raise ValueError("Set `total_episodes` or `max_steps`, not both: each says how long the run is.")
        if not (self.sequence_score_coef >= 0 and math.isfinite(self.sequence_score_coef)):
            raise ValueError(f"`sequence_score_coef` must be finite and not negative, got {self.sequence_score_coef}.")
        if self.sequence_score_coef > 0 and self.reward_aggregation == "min":
            raise ValueError("`sequence_score_coef` does not go with `reward_aggregation='min'`.")
        if self.sequence_score_coef > 0 and "sequence_score" in (self.reward_signal, _signal_of(self.reward_density)):
            raise ValueError("`sequence_score_coef` has no effect where the sequence score is the reward already.")
        if self.kl_target is not None and self.kl_coef <= 0:
            raise ValueError("`kl_target` adapts `kl_coef` by factors, so it needs one above 0.")
        if self.model_adapter_name is not None and self.ref_adapter_name is None:
            raise ValueError("`model_adapter_name` has an effect only together with `ref_adapter_name`.")
        check_least(num_completions_to_log=(self.num_completions_to_log, 1))
        if self.num_completions_to_log != 8 and not self.log_completions:
            raise ValueError("`num_completions_to_log` has no effect without `log_completions=True`.")
        if self.log_completions and self.logging_strategy == "no":
            raise ValueError(
                "`log_completions` has no effect with `logging_strategy='no'`: it logs when the trainer does."
            )
        self._check_vllm()

    @property
    def has_stop_token(self) -> bool:
        """Whether a token ends completions before `response_length`."""
        return self.stop_token is not None or self.stop_token_id is not None

    def find_stop_token(self, eos_token_id: int | None) -> int | None:
        """The token that ends completions, if there is one.

        Args:
            eos_token_id (`int` or `None`):
                The tokenizer's EOS.

        Raises:
            ValueError: If that, or what `missing_eos_penalty` misses, is to be the tokenizer's EOS, and the tokenizer
                has none.
        """
        if self.stop_token == "eos" and eos_token_id is None:
            raise ValueError("`stop_token='eos'`, but the tokenizer has no EOS token.")
        if self.missing_eos_penalty is not None and not self.has_stop_token and eos_token_id is None:
            raise ValueError(
                "`missing_eos_penalty` without a stop token is for EOS, but the tokenizer has no EOS token."
            )
        return eos_token_id if self.stop_token == "eos" else self.stop_token_id

    def check_number_of_rewards(self, number: int) -> None:
        """[`~ppo.reward_settings.RewardSettings.check_number_of_rewards`], and that there are as many weights."""
        super().check_number_of_rewards(number)
        if self.reward_weights is not None and len(self.reward_weights) != number:
            raise ValueError(
                f"`reward_weights` has {len(self.reward_weights)} entries, but the number of rewards is {number}."
            )

    def with_defaults_of(self, kinds: Sequence[RewardKind]) -> Self:
        """A copy in which the settings of rewards that are `None` have the values that they stand for; of several
        rewards, `hold_length` alone, since the others depend on each. The length is not held where nothing ends a
        completion.

        Args:
            kinds (`Sequence[str]`):
                What the rewards are.
        """
        scores_tokens = any(kind != "other" for kind in kinds)
        if scores_tokens and self.hold_length is None and not self.has_stop_token:
            logger.warning_once(
                "`hold_length` is off: without a stop token every completion has `response_length` tokens. Set "
                "`hold_length=False` to say so, or a `stop_token`."
            )
        args = self.with_reward_defaults(kinds[0]) if len(kinds) == 1 else copy.copy(self)
        if args.hold_length is None:
            args.hold_length = scores_tokens
        args.hold_length = args.hold_length and self.has_stop_token
        return args

    def _check_vllm(self) -> None:
        check_choice("vllm_mode", self.vllm_mode, tuple(_VLLM_FIELDS))
        check_choice("vllm_model_impl", self.vllm_model_impl, ("vllm", "transformers"))
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


def _signal_of(density: str | None) -> str | None:
    return "sequence_score" if density == "potential" else None
