"""The only module that imports TRL names which are private or which moved between versions, but for the base of
`_trl_ppo_config`."""

import warnings

from trl.data_utils import get_dataset_column_names
from trl.models.utils import add_hooks as add_deepspeed_hooks
from trl.models.utils import remove_hooks as remove_deepspeed_hooks
from trl.trainer.base_config import _BaseConfig as BaseConfig
from trl.trainer.base_trainer import _BaseTrainer as BaseTrainer
from trl.trainer.utils import (
    disable_dropout_in_model,
    get_config_model_id,
    pad,
)


try:
    with warnings.catch_warnings():
        # TRL 1.12 warns that its PPO is experimental; this package has a trainer of its own.
        warnings.simplefilter("ignore")
        from trl.experimental.ppo import PPOConfig, PPOTrainer
except ImportError:  # TRL 1.13 removed PPO; there the subclass relation ends at TRL's base classes.
    from ._trl_ppo_config import PPOConfig

    PPOTrainer = BaseTrainer
    TRL_HAS_PPO = False
else:
    TRL_HAS_PPO = True


def load_vllm_generation() -> type:
    """TRL's `VLLMGeneration`. It is loaded on demand, since it loads vLLM where that is installed.

    Raises:
        ImportError: Where vLLM, or what TRL needs for it, is not installed.
    """
    try:
        from trl.generation.vllm_generation import VLLMGeneration, is_vllm_available
    except ImportError as error:  # TRL 1.12 needs requests to load it at all.
        raise ImportError(f"{_NO_VLLM} ({error})") from error
    if not is_vllm_available():
        raise ImportError(_NO_VLLM)
    return VLLMGeneration


_NO_VLLM = "`use_vllm=True` needs vLLM: `pip install trl-tokenreward[vllm]`."

__all__ = [
    "TRL_HAS_PPO",
    "BaseConfig",
    "BaseTrainer",
    "PPOConfig",
    "PPOTrainer",
    "add_deepspeed_hooks",
    "disable_dropout_in_model",
    "get_config_model_id",
    "get_dataset_column_names",
    "load_vllm_generation",
    "pad",
    "remove_deepspeed_hooks",
]
