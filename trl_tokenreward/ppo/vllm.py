"""Sampling completions with vLLM, through TRL's own connection to it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, is_peft_model
from torch import nn
from transformers import PreTrainedTokenizerBase

from .._trl import load_vllm_generation, pad
from .config import FineGrainedPPOConfig
from .prompts import Prompts, real_ids
from .rollout import Completions


class VLLMEngine:
    """
    An adapter of TRL's `VLLMGeneration` to the PPO trainer: tensors in, [`~ppo.rollout.Completions`] out.

    Completions are sampled from the policy's own distribution, without truncation, penalties or the model's generation
    config. vLLM draws its own random numbers: with a seed in its sampling parameters, equal prompts of a batch would
    get equal completions.

    Args:
        policy (`PreTrainedModel` or `PeftModel`):
            The bare policy, whose weights vLLM gets.
        processing_class (`PreTrainedTokenizerBase`):
            Its tokenizer.
        accelerator (`Accelerator`):
            The trainer's.
        args ([`FineGrainedPPOConfig`]):
            The settings of vLLM and of sampling.
        stop_token_id (`int` or `None`):
            Ends a completion and belongs to it. `None`: every completion has `response_length` tokens.
        max_rows (`int`):
            Most prompts that this process samples at once.

    Raises:
        ImportError: Where vLLM, or what TRL needs for it, is not installed.
        ValueError: Where vLLM could not load the policy, or could not be sent its weights.
    """

    def __init__(
        self,
        policy: nn.Module,
        processing_class: PreTrainedTokenizerBase,
        accelerator: Accelerator,
        args: FineGrainedPPOConfig,
        stop_token_id: int | None,
        max_rows: int,
    ):
        if args.vllm_mode == "colocate" and not policy.name_or_path:
            raise ValueError(
                "vLLM loads `model` from where it came from, but it was made in memory: save it with its tokenizer and "
                "load it with `from_pretrained`."
            )
        if is_peft_model(policy) and set(policy.peft_config) != {"default"}:
            copies = [name for name, _ in policy.named_parameters() if ".modules_to_save." in name]
            if copies:
                raise ValueError(
                    "TRL can send vLLM the trained copies of whole modules (`modules_to_save`) of one adapter alone, "
                    f"which is named 'default'; `model` has {sorted(policy.peft_config)} with {copies[0]!r}. Pass a "
                    "`ref_model` to have no adapter copied as the reference."
                )
        self.policy = policy
        self.response_length = args.response_length
        self.max_model_length = args.vllm_max_model_length
        self.sleeps = args.vllm_enable_sleep_mode
        self.stop_token_id = stop_token_id
        self.pad_token_id = processing_class.pad_token_id
        self.generation = load_vllm_generation()(
            model=policy,
            accelerator=accelerator,
            processing_class=processing_class,
            mode=args.vllm_mode,
            server_base_url=args.vllm_server_base_url,
            server_host=args.vllm_server_host,
            server_port=args.vllm_server_port,
            server_timeout=args.vllm_server_timeout,
            group_port=args.vllm_group_port,
            tensor_parallel_size=args.vllm_tensor_parallel_size,
            gpu_memory_utilization=args.vllm_gpu_memory_utilization,
            max_model_length=args.vllm_max_model_length,
            max_num_seqs=max_rows * args.vllm_tensor_parallel_size,
            enable_sleep_mode=args.vllm_enable_sleep_mode,
            model_impl=args.vllm_model_impl,
            repetition_penalty=1.0,
            temperature=args.temperature,
            top_p=1.0,
            top_k=0,
            min_p=0.0,
            max_completion_length=args.response_length,
            logprobs=0,
            # By default, vLLM also stops at every EOS of the tokenizer and of the generation config.
            generation_kwargs={
                "ignore_eos": True,
                "stop_token_ids": [] if stop_token_id is None else [stop_token_id],
            },
        )

    @torch.no_grad()
    def sync(self) -> None:
        """Give vLLM the policy's present weights, adapters merged. Every process has to call it."""
        with _without_drift(self.policy):
            self.generation.sync_weights()

    def generate(self, prompts: Prompts, temperature: float) -> Completions:
        """Sample one completion for each of this process's prompts. Every process has to call it, with at least one
        prompt.

        Args:
            prompts (`Prompts`):
                B prompts.
            temperature (`float`):
                0 is greedy.

        Returns:
            `Completions`: B completions of at most `response_length` tokens, with vLLM's own log-probabilities, which
            its other kernels make differ from the policy's; NaN for a token that vLLM gave none for.

        Raises:
            ValueError: Where a prompt and its completion do not fit in `vllm_max_model_length`.
            RuntimeError: Where vLLM cut off a completion.
        """
        rows = real_ids(*prompts)
        longest = max(map(len, rows)) + self.response_length
        if self.max_model_length is not None and longest > self.max_model_length:
            raise ValueError(
                f"A prompt of {longest - self.response_length} tokens and `response_length={self.response_length}` do "
                f"not fit in `vllm_max_model_length={self.max_model_length}`."
            )
        # TRL cuts the completions of all processes into slices as long as this process's prompts are many, so that all
        # have to bring equally many.
        most = max(gather_object([len(rows)]))
        self.generation.temperature = temperature
        # With sleep mode, TRL sends the weights once more where vLLM has slept.
        with _without_drift(self.policy) if self.sleeps else nullcontext():
            _, ids, logps, _ = self.generation.generate(
                prompts=rows + rows[:1] * (most - len(rows)), images=None, num_generations=1
            )
        return self._completions(ids[: len(rows)], logps[: len(rows)], prompts.ids.device)

    def _completions(
        self, ids: list[list[int]], logps: list[list[list[float | None]]], device: torch.device
    ) -> Completions:
        for row in ids:
            # vLLM's token ids include the stop token. Adding a missing one would invent an end.
            if len(row) != self.response_length and (len(row) == 0 or row[-1] != self.stop_token_id):
                raise RuntimeError(
                    f"vLLM returned a completion of {len(row)} tokens, which is not "
                    f"`response_length={self.response_length}` and does not end with the stop token "
                    f"({self.stop_token_id}). Its context may be too short for prompt and completion: raise "
                    "`vllm_max_model_length`, or `--max-model-len` of the server."
                )
        lengths = torch.tensor([len(row) for row in ids])
        # One log-probability for each token: that of the token itself.
        known = [[math.nan if logp is None else logp for (logp,) in row] for row in logps]
        columns = (
            pad([torch.tensor(row) for row in ids], padding_value=self.pad_token_id),
            (torch.arange(int(lengths.max())) < lengths.unsqueeze(1)).long(),
            pad([torch.tensor(row) for row in known]),
            torch.tensor([row[-1] == self.stop_token_id for row in ids]),
        )
        return Completions(*(column.to(device) for column in columns))


@contextmanager
def _without_drift(policy: nn.Module) -> Iterator[None]:
    """Restore the weights under adapters afterwards.

    TRL merges adapters into them for a transfer and subtracts them again. In bfloat16 the rounding errors add up from
    one transfer to the next, in the reference policy too. The copy is in the CPU's memory, since the GPU's holds vLLM.
    """
    saved = []
    if is_peft_model(policy):
        under_adapters = [parameter for name, parameter in policy.named_parameters() if ".base_layer." in name]
        saved = [(parameter, parameter.data.to("cpu", copy=True)) for parameter in under_adapters]
    try:
        yield
    finally:
        for parameter, value in saved:
            parameter.data.copy_(value)
