"""Makes transformers' auto classes know the token reward model, without importing transformers to do so.

`import trl_tokenreward` has to stay light, yet `AutoModel.from_pretrained` has to load a token reward model's checkpoint
once the package is imported. So where transformers' table of configurations is loaded already, the model's configuration
is registered at once; otherwise a finder waits on `sys.meta_path` for that one module, registers right after it has been
executed, and is gone. The model class follows when a configuration is made, see `TokenRewardModelConfig`.
"""

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


_CONFIG_TABLE = "transformers.models.auto.configuration_auto"


def install() -> None:
    """Register now or, where transformers' table of configurations is not loaded yet, as soon as it is."""
    if _CONFIG_TABLE in sys.modules:
        _register()
    elif not any(isinstance(finder, _PostImportHook) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PostImportHook())


def _register() -> None:
    # The module registers its configuration as its last act. Where it is itself what led here, being executed, it will.
    from .reward_model import configuration as model_config  # noqa: F401


class _PostImportHook(MetaPathFinder):
    """Finds one module as the other finders do, and has `_register` called after its execution."""

    def find_spec(self, fullname: str, path: object = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != _CONFIG_TABLE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        loader, execute = spec.loader, spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module  # uncovers the loader's own method: nothing of the hook stays behind
            execute(module)
            _register()

        loader.exec_module = exec_module
        return spec
