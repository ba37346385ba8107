"""Code that comes with a model or a tokenizer does not run, whatever standard input says."""

import ast
import io
import json
from pathlib import Path

import pytest
from datasets import Dataset

import tiny
from trl_tokenreward import FineGrainedGRPOConfig, FineGrainedGRPOTrainer
from trl_tokenreward.cli import main as cli


pytestmark = pytest.mark.any_trl

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path):
    """A model whose configuration, weights and tokenizer name classes of the folder's own code."""
    folder = tmp_path / "model"
    tiny.causal_lm().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    classes = {
        "config.json": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model", "AutoModel": "own.Model"},
        "tokenizer_config.json": {"AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"]},
    }
    for name, auto_map in classes.items():
        content = json.loads((folder / name).read_text())
        content |= {"auto_map": auto_map}
        content["model_type" if name == "config.json" else "tokenizer_class"] = "own"
        (folder / name).write_text(json.dumps(content))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "{tmp}/pairs.jsonl", "--tokenizer", "{tmp}/model"],
        ["edit", "{tmp}/pairs.jsonl", "{tmp}/out", "--local", "{tmp}/model"],
        ["edit", "{tmp}/pairs.jsonl", "{tmp}/out", "--endpoint", "http://h", "--model", "m", "--reward-model", "{tmp}/model"],
        ["score", "{tmp}/model", "--text", "a"],
        ["score", "{tmp}/reward", "--tokenizer", "{tmp}/model", "--text", "a"],
    ],
)  # fmt: skip
def test_a_folders_code_does_not_run(arguments, folder, tmp_path, monkeypatch, capsys):
    from trl_tokenreward import TokenRewardModel

    TokenRewardModel.from_backbone(tiny.sequence_classifier()).save_pretrained(tmp_path / "reward")
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "p", "chosen": "a b", "rejected": "a c"}\n')
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 10))
    assert cli.main([argument.format(tmp=tmp_path) for argument in arguments]) == 2
    assert "trust_remote_code" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("trust", [False, True])
def test_the_code_of_grpos_reward_model_runs_where_it_is_trusted(trust, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 10))
    args = FineGrainedGRPOConfig(str(tmp_path / "out"), use_cpu=True, bf16=False, trust_remote_code=trust)
    dataset = Dataset.from_dict({"prompt": ["a"]})
    with pytest.raises((ValueError, AttributeError), match="no attribute 'Config'" if trust else "trust_remote_code"):
        FineGrainedGRPOTrainer(tiny.causal_lm(), str(folder), args, dataset)
    assert (tmp_path / "ran").exists() == trust


def test_everything_that_loads_says_whether_it_trusts():
    loads = []
    for path in (*(ROOT / "trl_tokenreward").rglob("*.py"), *(ROOT / "examples").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value)
                if node.func.attr == "from_pretrained" and owner.startswith("Auto"):
                    names = {keyword.arg for keyword in node.keywords}
                    loads.append(path)
                    assert names & {"trust_remote_code", None}, f"{path}, line {node.lineno}: {ast.unparse(node)}"
    assert len(loads) > 10
