"""What an import of the package costs, what it makes known to transformers, and its public names."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import tiny
import trl_tokenreward
from trl_tokenreward import TokenRewardModel


pytestmark = pytest.mark.slow


ROOT = Path(__file__).resolve().parents[1]


def run(code: str, *arguments: str) -> str:
    """Run code in a fresh interpreter, from the checkout, and give what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    directory = str(tmp_path_factory.mktemp("token-reward-model"))
    TokenRewardModel.from_backbone(tiny.causal_lm("llama")).save_pretrained(directory)
    return directory


def test_import_is_light():
    heavy = run(
        """
        import sys
        import trl_tokenreward
        heavy = {"torch", "transformers", "trl", "datasets", "accelerate", "peft", "numpy", "rapidfuzz", "regex"}
        print(sorted(heavy & set(sys.modules)))
        """
    )
    assert heavy == "[]"


def test_import_takes_no_time():
    # Some 20 ms; torch alone takes about a second.
    seconds = run(
        """
        import time
        start = time.process_time()
        import trl_tokenreward
        print(time.process_time() - start)
        """
    )
    assert float(seconds) < 0.3


def test_aligning_edits_needs_no_torch():
    loaded = run(
        """
        import sys
        from trl_tokenreward import align_ids
        print(align_ids([1, 2, 3], [1, 4, 3]).original_mask, "torch" in sys.modules, "transformers" in sys.modules)
        """
    )
    assert loaded == "[False, True, False] False False"


LOAD = """
    config = transformers.AutoConfig.from_pretrained(sys.argv[1])
    bare = transformers.AutoModel.from_pretrained(sys.argv[1])
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(sys.argv[1], num_labels=1)
    print(type(config).__name__, type(bare).__name__, type(classifier).__name__)
"""


@pytest.mark.any_trl
@pytest.mark.parametrize(
    "imports",
    [
        "import trl_tokenreward, transformers",
        "import transformers, trl_tokenreward",
        "import trl_tokenreward; import transformers.modeling_utils",
        "import trl_tokenreward; from transformers import AutoTokenizer",
        "from transformers import AutoConfig; import trl_tokenreward",
        "from transformers import AutoModel; import trl_tokenreward",
        "from trl import RewardTrainer; import trl_tokenreward",
        "import transformers; from trl_tokenreward import TokenRewardModel",
    ],
)
def test_auto_classes_know_the_model_in_any_order(imports, checkpoint):
    printed = run(f"import sys\n{imports}\nimport transformers{textwrap.dedent(LOAD)}", checkpoint)
    assert printed == "TokenRewardModelConfig TokenRewardModel TokenRewardModel"


def test_without_the_package_the_checkpoint_is_unknown(checkpoint):
    # Else the tests above would show nothing.
    printed = run(
        """
        import sys
        import transformers
        try:
            transformers.AutoConfig.from_pretrained(sys.argv[1])
        except ValueError as error:
            print("token_reward" in str(error))
        """,
        checkpoint,
    )
    assert printed == "True"


def test_hook_waits_and_leaves_nothing_behind():
    printed = run(
        """
        import sys
        import trl_tokenreward
        from trl_tokenreward import _registration

        def waiting():
            return [len(f.waiting) for f in sys.meta_path if isinstance(f, _registration._PostImportHook)]

        print(waiting())
        _registration.install()
        print(waiting())
        import transformers.models.auto.configuration_auto as table
        print(waiting(), "exec_module" in vars(table.__loader__), f"{trl_tokenreward.__name__}.reward_model.modeling" in sys.modules)
        print(table.CONFIG_MAPPING["token_reward"].__name__)
        import transformers.models.auto.modeling_auto as table
        print(waiting(), "exec_module" in vars(table.__loader__), len(table.MODEL_MAPPING._extra_content))
        """
    )
    assert printed.split("\n") == [
        "[4]",
        "[4]",
        "[2] False False",
        "TokenRewardModelConfig",
        "[] False 1",
    ]


def test_star_import_gives_every_public_name():
    names = run(
        """
        from trl_tokenreward import *
        import trl_tokenreward
        print(sorted(set(trl_tokenreward.__all__) - set(globals())), len(trl_tokenreward.__all__) > 10)
        """
    )
    assert names == "[] True"


def test_public_names_come_from_their_modules():
    for name in trl_tokenreward.__all__:
        assert getattr(trl_tokenreward, name).__module__.startswith("trl_tokenreward."), name


def test_dir_lists_public_names_before_they_are_loaded():
    listed = run("import trl_tokenreward; print(set(trl_tokenreward.__all__) <= set(dir(trl_tokenreward)))")
    assert listed == "True"


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'trl_tokenreward' has no attribute 'TokenRewardModl'"):
        trl_tokenreward.TokenRewardModl  # noqa: B018
    assert not hasattr(trl_tokenreward, "TokenRewardModl")


def test_the_config_module_may_come_first():
    code = "from trl_tokenreward.reward_model.configuration import TokenRewardModelConfig as C; from transformers import AutoConfig; "
    code += "assert AutoConfig.for_model('token_reward', text_config={'model_type': 'llama'}).__class__ is C"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
