"""The saved adapter of a token reward model, read as a model."""

import os
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME, cached_file, find_adapter_config_file, is_peft_available

from ..nn.modules import make_trainable
from ..utils.loading import check_source, loading


if TYPE_CHECKING:
    from peft import PeftConfig

    from .modeling import TokenRewardModel


# Arguments of `from_pretrained` that say where the files are.
_OF_FILES = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_HUB_ARGUMENTS = (*_OF_FILES, "code_revision")
_OF_ONE_REPOSITORY = ("revision", "subfolder", "code_revision")


def read_config(path: str | os.PathLike | None, kwargs: dict[str, Any]) -> "PreTrainedConfig | PeftConfig":
    """The configuration of the model in a folder or of a name on the Hub or, if there is none, of the adapter.

    Args:
        path (`str` or `os.PathLike`):
            The folder or name.
        kwargs (`dict`):
            Arguments of `from_pretrained`; `trust_remote_code` and those that say where files are count.

    Raises:
        OSError, ValueError: If there is neither, or it cannot be read.
        ImportError: See [`saved_adapter`].
    """
    arguments = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=kwargs.get("trust_remote_code", False), **arguments)
    except (OSError, ValueError):
        if path is None or (adapter := saved_adapter(path, kwargs)) is None:
            raise
        return adapter


def saved_adapter(path: str | os.PathLike, kwargs: dict[str, Any]) -> "PeftConfig | None":
    """The configuration of the adapter in a folder or of a name on the Hub, or `None` if there is none.

    Args:
        path (`str` or `os.PathLike`):
            The folder or name.
        kwargs (`dict`):
            Arguments of `from_pretrained`; those that say where files are count.

    Raises:
        ImportError: If there is one, but no PEFT.
    """
    arguments = _of_files(kwargs)
    if find_adapter_config_file(os.fspath(path), **arguments) is None:
        return None
    if not is_peft_available():
        raise ImportError(f"{path} holds a PEFT adapter. Install PEFT to load it: `pip install peft`.")
    from peft import PeftConfig

    return PeftConfig.from_pretrained(os.fspath(path), **arguments)


def has_token_head(adapter: "PeftConfig") -> bool:
    """Whether the adapter is a token reward model's: one that holds the head of token scores."""
    return "token_score" in (getattr(adapter, "modules_to_save", None) or ())


def check_saved_adapter(adapter: "PeftConfig", path: str | os.PathLike, kwargs: dict[str, Any]) -> None:
    """Checks, before anything is loaded, that the adapter at `path` is a token reward model's.

    Raises:
        ValueError: If it is not, does not say what its base is or names a folder that is not there, or is pickled.
    """
    if not has_token_head(adapter):
        raise ValueError(
            f"{path} holds a PEFT adapter without the head of token scores, so it is no token reward model's. If it is "
            "a language model's or a classifier's, merge it into that (`merge_and_unload`), save the result, and load "
            "that."
        )
    if not adapter.base_model_name_or_path:
        raise ValueError(
            f"{path} holds a PEFT adapter and does not say of which model: set `base_model_name_or_path` in its "
            "adapter_config.json."
        )
    folder = os.path.join(path, kwargs.get("subfolder") or "")
    if os.path.isdir(path) and not os.path.isfile(os.path.join(folder, "adapter_model.safetensors")):
        raise ValueError(
            f"{path} has no adapter_model.safetensors. Pickled weights are not loaded: save the adapter again with "
            "`safe_serialization=True`."
        )
    check_source(adapter.base_model_name_or_path, _base_of(path))


def load_merged(
    load: Callable[..., "TokenRewardModel"], adapter: "PeftConfig", path: str | os.PathLike, kwargs: dict[str, Any]
) -> "TokenRewardModel":
    """The adapter at `path`, merged into its base model, which `load` loads with those `kwargs` that are not of the
    adapter's repository alone.

    Raises:
        ValueError: See [`check_saved_adapter`], and if the base cannot be loaded or the adapter does not fit it.
    """
    check_saved_adapter(adapter, path, kwargs)
    from peft import PeftModel

    others = {name: value for name, value in kwargs.items() if name not in _OF_ONE_REPOSITORY}
    if adapter.revision:
        others["revision"] = adapter.revision
    name = adapter.base_model_name_or_path
    with loading(name, _base_of(path)):
        base = load(name, **others)
    if (size := _saved_embeddings(base, path, kwargs)) is not None:
        base.resize_token_embeddings(size, mean_resizing=False)
    with warnings.catch_warnings():
        # PEFT only warns of layers that the adapter does not have, and would leave them as they are.
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            adapted = PeftModel.from_pretrained(base, os.fspath(path), **_of_files(kwargs))
        except (UserWarning, RuntimeError) as error:  # the latter if the sizes differ
            raise ValueError(f"The adapter {path} does not fit its base model {name}: {error}") from error
    model = make_trainable(adapted.merge_and_unload())
    model.name_or_path = model.config.name_or_path = str(path)  # or logs and adapters of it would name its base
    return model.eval()


def _saved_embeddings(base: "TokenRewardModel", path: str | os.PathLike, kwargs: dict[str, Any]) -> int | None:
    """How many embeddings the adapter's file has, if it has them: where `chat_template_path` has resized the base's."""
    name = next(name for name, module in base.named_modules() if module is base.get_input_embeddings())
    of_base = rf"base_model\.model\.{re.escape(name)}(\.token_adapter|\.base_layer)*\.weight"
    with safe_open(cached_file(os.fspath(path), ADAPTER_SAFE_WEIGHTS_NAME, **_of_files(kwargs)), "pt") as weights:
        saved = [key for key in weights.keys() if re.fullmatch(of_base, key)]
        return weights.get_slice(saved[0]).get_shape()[0] if saved else None


def _base_of(path: str | os.PathLike) -> str:
    return f"base model (`base_model_name_or_path` of the adapter {path})"


def _of_files(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: kwargs[name] for name in _OF_FILES if name in kwargs}
