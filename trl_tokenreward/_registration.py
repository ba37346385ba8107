"""Registers the token reward model at transformers' auto classes, without importing transformers to do so.

`import trl_tokenreward` has to stay light, yet `AutoModel.from_pretrained` has to load a token reward model's
checkpoint once the package is imported. So a finder waits on `sys.meta_path`. When transformers' table of
configurations or of models has been executed, it loads this package's own configuration or model, and once that has
been executed, it registers it. A module that is loaded already is taken care of at once.
"""

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


_CONFIGURATION, _MODELING = f"{__package__}.reward_model.configuration", f"{__package__}.reward_model.modeling"


def install() -> None:
    """Register what can be registered now, and the rest as soon as the modules that it needs are loaded."""
    if any(isinstance(finder, _PostImportHook) for finder in sys.meta_path):
        return
    waiting = {module: action for module, action in _ACTIONS.items() if module not in sys.modules}
    if waiting:
        sys.meta_path.insert(0, _PostImportHook(waiting))
    for module, action in _ACTIONS.items():
        if module not in waiting:
            action()


def _register_config() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from .reward_model.configuration import TokenRewardModelConfig

    AutoConfig.register(TokenRewardModelConfig.model_type, TokenRewardModelConfig, exist_ok=True)


def _load(module: str) -> Callable[[], None]:
    # Where the module is itself what loads transformers' table, it is under way, and this does nothing.
    def load() -> None:
        importlib.import_module(module)

    return load


def _register_model() -> None:
    from transformers.models.auto.modeling_auto import AutoModel, AutoModelForSequenceClassification

    from .reward_model.configuration import TokenRewardModelConfig
    from .reward_model.modeling import TokenRewardModel

    for auto_class in (AutoModel, AutoModelForSequenceClassification):
        auto_class.register(TokenRewardModelConfig, TokenRewardModel, exist_ok=True)


_ACTIONS: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": _load(_CONFIGURATION),
    _CONFIGURATION: _register_config,
    "transformers.models.auto.modeling_auto": _load(_MODELING),
    _MODELING: _register_model,
}


class _PostImportHook(MetaPathFinder):
    """Finds modules as the other finders do, and has an action called after each one's execution.

    Args:
        waiting (`dict[str, Callable]`):
            Module to action.
    """

    def __init__(self, waiting: dict[str, Callable[[], None]]):
        self.waiting = waiting

    def find_spec(self, fullname: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        action = self.waiting.pop(fullname, None)
        if action is None:
            return None
        if not self.waiting:
            sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        loader, execute = spec.loader, spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module  # uncovers the loader's own method: nothing of the hook stays behind
            execute(module)
            action()

        setattr(loader, "exec_module", exec_module)  # noqa: B010  # mypy refuses to assign to a method
        return spec
