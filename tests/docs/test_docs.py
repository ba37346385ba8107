"""The documentation: its commands and its Python run as they stand there, its links lead somewhere, and the site that
is built of it needs no network."""

import csv
import functools
import html.parser
import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from ast import AST, Constant, FormattedValue, JoinedStr, parse, walk
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import datasets
import pytest
import torch
from datasets import Dataset

import fake_endpoint
import tiny
import trl_tokenreward
from demo_corpus import make_corpus
from trl_tokenreward import FineGrainedPPOConfig, FineGrainedPPOTrainer, TokenRewardModel
from trl_tokenreward.annotation.store import AnnotationStore
from trl_tokenreward.cli import main as cli
from trl_tokenreward.data.importers import import_dataset


pytestmark = [pytest.mark.any_trl, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)

# What no test here runs: how a command, or a line of a block of Python, begins, and why. Such a block is left out as a
# whole.
NOT_RUN = {
    r"pip install ": "installs what the tests run with",
    r"make (browser|demo|docs|lint|test)\b": "make test runs this; make demo is examples/demo.py; the rest have their tests",
    r"\.venv-trl1\.16/bin/python -m pytest": "runs this",
    r"python -m pytest tests/torture": "takes a quarter of an hour",
    r"trl-tokenreward annotate |annotate_dataset\(": "serves until it is ended; tests/annotation/test_page.py opens the page",
    r"FineGrainedPPOConfig\(\.\.\.": "a part of a block; tests/ppo/test_completion_log.py runs it",
    r"import argilla": "needs a server, and argilla, which is no dependency; tests/reward_model/test_export.py reads the files",
    r"vllm serve ": "needs a GPU, and serves until it is ended",
    r".* --use_vllm ": "needs a GPU; tests/ppo/test_vllm.py runs TRL's code for vLLM on a stand-in",
    r"accelerate launch ": "needs GPUs; tests/ppo/test_distributed.py launches processes with gloo",
    r"python examples/demo\.py": "tests/examples/test_examples.py runs it",
    r"python examples/train_fine_grained_ppo\.py --model_name_or_path Qwen/Qwen2\.5-7B": "a model of 7B; others are run",
    r"python benchmarks/hh_rlhf\.py": "needs HH-RLHF's files and minutes",
}
# What makes a command short enough, after its own options: of an option that is given twice the last counts.
TRAINING = ["--use_cpu", "--bf16", "False", "--report_to", "none", "--per_device_train_batch_size", "4"]
SHORTER = {
    "examples/demo_corpus.py": ["--rows", "48", "--evaluation-rows", "12"],
    "examples/small_policy.py": ["--epochs", "1"],
    "examples/train_token_reward.py": [*TRAINING, "--max_steps", "2", "--eval_steps", "2", "--save_strategy", "no"],
    "examples/train_fine_grained_ppo.py": [
        *TRAINING,
        *("--gradient_accumulation_steps", "1", "--total_episodes", "8", "--response_length", "8"),
    ],
    "edit": ["--limit", "4"],
    "round": [
        *("--num-prompts", "4", "--rounds", "1", "--max-edit-ratio", "1", "--max-length-change", "9"),
        *("--reward-config", "short-reward.yaml", "--ppo-config", "short-ppo.yaml"),
    ],
    "--local": ["--max-new-tokens", "8", "--limit", "2"],
}
CPU = 'use_cpu=True, bf16=False, report_to="none"'
GRPO = "max_steps=1, max_completion_length=8"


# --- commands and Python ----------------------------------------------------------------------------------------------


def answer(text: str, number: int) -> str:
    """What the language model behind the pages' endpoint says: an edit of one word, or a verdict."""
    edited = re.search(r"<answer>\n(.*)\n</answer>", text, re.DOTALL)
    if edited is None:
        return "[[A]]"
    words = edited[1].split(" ")
    return f"<edited>{' '.join([*words[:-1], 'indeed.'])}</edited>"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """What the pages take for granted: a checkout's examples, data sets, a model from the Hub, a policy and a reward
    model."""
    folder = tmp_path_factory.mktemp("docs")
    tokenizer = tiny.tokenizer()
    policy = tiny.causal_lm(max_position_embeddings=2048)
    torch.manual_seed(0)
    reward_model = TokenRewardModel.from_backbone(policy)
    torch.nn.init.normal_(reward_model.token_score.weight)
    for name, model in {"hub-model": policy, "ppo": policy, "token-reward": reward_model}.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    policy_run = FineGrainedPPOConfig(
        output_dir=str(folder / "ppo"),
        use_cpu=True,
        bf16=False,
        report_to="none",
        total_episodes=8,
        response_length=4,
        log_completions=True,
        logging_steps=4,
        num_sample_generations=0,
    )
    FineGrainedPPOTrainer(
        policy_run,
        tokenizer,
        policy,
        reward_model=reward_model,
        train_dataset=Dataset.from_dict({"prompt": ["a", "b"]}),
    ).train()
    shutil.copytree(folder / "token-reward", folder / "token-reward-v2")
    rows = make_corpus(24, seed=0)
    for path, part in {"train": rows[:16], "test": rows[16:]}.items():
        write_rows(folder / "hub-data" / "harmless-base" / f"{path}.jsonl", part)
    write_rows(folder / "dialogues.jsonl", rows)
    pairs = import_dataset("hh-rlhf", folder / "dialogues.jsonl").dataset.to_list()
    write_rows(folder / "pairs.jsonl", pairs)
    Dataset.from_list(pairs).to_parquet(folder / "pairs.parquet")
    write_rows(folder / "answers.jsonl", [{"prompt": row["prompt"], "text": row["chosen"]} for row in pairs])
    write_annotations(folder, pairs)
    with opened_store(pairs, folder / "work") as store:
        shown = store.show("ada", "a tab")
        store.save("ada", "a tab", shown["row"], f"{shown['text']} Indeed.")
    on_cpu = "use_cpu: true, bf16: false, report_to: none"
    (folder / "short-reward.yaml").write_text(f"{{{on_cpu}, max_steps: 2}}")
    (folder / "short-ppo.yaml").write_text(f"{{{on_cpu}, total_episodes: 8, response_length: 8}}")
    write_table(folder / "reviews.csv", ["original", "edited"], [[row["rejected"], row["chosen"]] for row in pairs])
    write_table(folder / "toxic-spans.csv", ["spans", "text"], [["[0, 1, 2, 3]", "Damn, a mess"], ["[]", "Well."]])
    toxic = ["toxic", "neutral1", "neutral2", "neutral3"]
    write_table(folder / "paradetox.tsv", toxic, [["what a damn mess", "what a mess", "", ""]], delimiter="\t")
    steps = ["2 + 2 = 5.", "So 5."]
    labels = [[False, True], [True, True]] * 2
    solutions = [{"prompt": "2 + 2?\n", "completions": steps, "labels": x} for x in labels]
    for name in ("steps", "other-steps"):
        write_rows(folder / f"{name}.jsonl", solutions)
    right, wrong = {"original_process": ["It is 4."]}, {"modified_process": steps, "error_steps": [1, 2]}
    question = {"original_question": "2 + 2?", "modified_question": "2 + 2?"}
    write_rows(folder / "prmbench.jsonl", [{**question, **right, **wrong}] * 4)
    return folder


def write_annotations(folder: Path, pairs: list[dict]) -> None:
    """Exports of annotation tools, with the first word of each answer marked."""
    answers = [{"prompt": pair["prompt"], "completion": pair["rejected"].strip()} for pair in pairs]
    words = [{"start": 0, "end": len(answer["completion"].split(" ")[0])} for answer in answers]
    results = [
        [{"from_name": "spans", "type": "labels", "value": {**word, "labels": ["wrong"]}, "to_name": "completion"}]
        for word in words
    ]
    tasks = [
        {"data": answer, "annotations": [{"result": result}]} for answer, result in zip(answers, results, strict=True)
    ]
    (folder / "label-studio.json").write_text(json.dumps(tasks), encoding="utf-8")
    lines = [
        {"text": answer["completion"], "label": [[word["start"], word["end"], "wrong"]]}
        for answer, word in zip(answers, words, strict=True)
    ]
    write_rows(folder / "doccano.jsonl", lines)
    submitted = {"spans.responses.users": ["ada"], "spans.responses.status": ["submitted"]}
    records = [
        {**answer, "spans.responses": [[{**word, "label": "wrong"}]], **submitted}
        for answer, word in zip(answers, words, strict=True)
    ]
    Dataset.from_list(records).to_parquet(folder / "argilla.parquet")


@contextmanager
def opened_store(pairs: list[dict], folder: Path) -> Iterator[AnnotationStore]:
    store = AnnotationStore(Dataset.from_list(pairs), folder)
    yield store
    store.close()


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_table(path: Path, header: list[str], rows: list[list[str]], delimiter: str = ",") -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])


class Reader:
    """Does what a page says, block by block, in a folder of its own."""

    def __init__(self, folder: Path, url: str, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.monkeypatch = folder, monkeypatch
        self.names = {
            "Qwen/Qwen2.5-0.5B-Instruct": str(folder / "hub-model"),
            "Anthropic/hh-rlhf": str(folder / "hub-data"),
            "http://localhost:8000/v1": url,
        }
        self.variables: dict = {}

    def read(self, page: Path) -> None:
        blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
        for language, block in blocks:
            for old, new in self.names.items():
                block = block.replace(old, new)
            if language == "bash":
                for line in commands(block):
                    self.run(line)
            elif page.name == "README.md" or any(map(excused, block.splitlines())):
                continue  # the README's Python is tests/docs/test_readme.py's
            else:
                exec(compile(self.shortened(block), f"{page.name}", "exec"), self.variables)

    def shortened(self, code: str) -> str:
        code = code.replace("TokenRewardConfig(", f"TokenRewardConfig({CPU}, max_steps=2, ")
        code = code.replace("DPOConfig(", f"DPOConfig({CPU}, max_steps=2, ")
        code = code.replace(", response_length=128", "")
        code = code.replace("FineGrainedPPOConfig(", f"FineGrainedPPOConfig({CPU}, response_length=8, ")
        code = code.replace("FineGrainedGRPOConfig(", f"FineGrainedGRPOConfig({CPU}, {GRPO}, ")
        return re.sub(r"total_episodes=\d+", "total_episodes=16", code)

    def run(self, line: str) -> None:
        if excused(line):
            return
        words = shlex.split(line)
        if words[0] == "echo":
            subprocess.run(line, shell=True, check=True)
            return
        if words[:1] == ["trl-tokenreward"] or words[:3] == ["python", "-m", "trl_tokenreward"]:
            arguments = words[1:] if words[0] == "trl-tokenreward" else words[3:]
            if arguments[0] == "import":  # what the workplace has in its place
                Path(arguments[3]).unlink(missing_ok=True)
            more = [option for name in ("edit", "--local", "round") if name in arguments for option in SHORTER[name]]
            assert cli.main([*arguments, *more]) == 0, line
            return
        assert words[0] == "python" and (self.folder / words[1]).is_file(), (
            f"No test runs `{line}`: teach Reader.run to, or list it in NOT_RUN with a reason."
        )
        self.monkeypatch.setattr(sys, "argv", [*words[1:], *([] if "--help" in words else SHORTER[words[1]])])
        try:
            runpy.run_path(words[1], run_name="__main__")
        except SystemExit as stop:
            assert stop.code in (0, None), line


def excused(line: str) -> bool:
    return any(re.match(pattern, line) for pattern in NOT_RUN)


def commands(block: str) -> list[str]:
    """The command lines of a block, each as one, without comments and without the environment that it is run in."""
    lines = [line.partition(" # ")[0].strip() for line in block.replace("\\\n", " ").splitlines()]
    return [re.sub(r"^(\w+=\S+ +)+|\s+(?=\s)", "", line) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_says_runs(page, workplace, tmp_path, monkeypatch):
    folder = tmp_path / "checkout"
    shutil.copytree(workplace, folder)
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which pages add
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    if not page.name.startswith(("tutorial", "README")):  # Python that loads a data set of the Hub by its name
        hub = Dataset.from_list(make_corpus(16, seed=0))
        monkeypatch.setattr(datasets, "load_dataset", functools.partial(hub_or_file, hub, datasets.load_dataset))
    with fake_endpoint.running(answer) as server:
        Reader(folder, server.url, monkeypatch).read(page)


def hub_or_file(hub, load_dataset, name, *args, **kwargs):
    return hub if name.endswith("hub-data") and not kwargs.get("data_files") else load_dataset(name, *args, **kwargs)


def test_what_is_not_run_is_there():
    blocks = [block for page in PAGES for block in BLOCK.findall(page.read_text(encoding="utf-8"))]
    lines = [
        line for language, block in blocks for line in (commands(block) if language == "bash" else block.splitlines())
    ]
    for pattern in NOT_RUN:
        assert any(re.match(pattern, line) for line in lines), f"{pattern!r} excuses no command any more"


def test_pages_are_wrapped():
    """Tables, formulas, code and quoted errors are as wide as they are; a URL has no place to break."""
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for line in text.splitlines():
            free = line.startswith(("|", ">", "$$")) or "](" in line.split(" ")[0]
            assert len(line) <= 120 or free, (page.name, line)


# --- links and quotes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "page",
    [
        *PAGES,
        *sorted((ROOT / "docs").glob("*/*.md")),
        ROOT / "CHANGELOG.md",
        *(ROOT / "benchmarks/results").glob("*.md"),
    ],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_links_lead_to_files(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        parts = urlsplit(link)
        if not parts.scheme and parts.path:
            assert (page.parent / unquote(parts.path)).exists(), link


def messages(tree: AST) -> list[list[str]]:
    """Every string of a program, as what stands between its fields."""
    found = []
    for node in walk(tree):
        if isinstance(node, Constant) and isinstance(node.value, str):
            found.append([node.value])
        elif isinstance(node, JoinedStr):
            parts = [""]
            for value in node.values:
                if isinstance(value, FormattedValue):
                    parts.append("")
                else:
                    parts[-1] += value.value
            found.append(parts)
    return found


def says(quote: str, parts: list[str]) -> bool:
    """Whether a message has the words of a quote, in their order. What the quote leaves open is a field."""
    message = "\0".join(parts)
    pieces = [re.escape(piece.strip()) for piece in quote.split("…") if piece.strip()]
    return bool(pieces) and re.search(r"[\s\S]*\0[\s\S]*".join(pieces), message) is not None


def test_the_errors_on_the_troubleshooting_page_are_those_of_the_package():
    quotes = re.findall(r"^> (.+)$", (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(quotes) > 40
    files = [*(ROOT / "trl_tokenreward").rglob("*.py"), Path(importlib.util.find_spec("transformers").origin)]
    files[-1] = files[-1].parent / "training_args.py"
    known = [parts for file in files for parts in messages(parse(file.read_text(encoding="utf-8")))]
    for quote in quotes:
        assert any(says(quote, parts) for parts in known), quote


# --- the site ---------------------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """What of an HTML page the tests look at."""

    ASSETS = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src"}

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.assets: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if "id" in attributes:
            self.ids.add(attributes["id"])
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        if attributes.get(self.ASSETS.get(tag)):
            self.assets.append(attributes[self.ASSETS[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_the_site_names_no_asset_on_the_network(site, pages):
    for path, page in pages.items():
        assert not [asset for asset in page.assets if urlsplit(asset).scheme or asset.startswith("//")], path
        for asset in page.assets:
            assert path.name == "404.html" or (path.parent / urlsplit(asset).path).exists(), (path, asset)
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", path.read_text(encoding="utf-8")), path


def test_links_within_the_site_lead_to_places(site, pages):
    for path, page in pages.items():
        if path.name == "404.html":  # its links begin at the root of a server
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), (path.name, link)
            if parts.fragment and target in pages and parts.fragment != "__skip":
                assert unquote(parts.fragment) in pages[target].ids, (path.name, link)


def test_every_public_name_and_every_command_has_an_entry(site, pages):
    ids = set().union(*(page.ids for path, page in pages.items() if path.parent.name == "reference"))
    for name in trl_tokenreward.__all__:
        assert f"trl_tokenreward.{trl_tokenreward._MODULE_OF[name]}.{name}" in ids, name
    for path in (ROOT / "trl_tokenreward").glob("[a-z]*.py"):
        if path.stem in ("editors", "importers", "inspection", "functional", "rewards", "statistics", "judges"):
            assert f"trl_tokenreward.{path.stem}" in ids
    help_page = (site / "command-line.html").read_text(encoding="utf-8")
    for name in cli.COMMANDS:
        assert f"usage: trl-tokenreward {name.rstrip('_')} " in help_page


def test_docstrings_are_laid_out(site):
    ppo = (site / "reference/ppo.html").read_text(encoding="utf-8")
    assert (
        "<dt><code>kl_coef</code> (<code>float</code>, <em>optional</em>, defaults to <code>0.05</code>)</dt>\n"
        "<dd>Coefficient of the KL penalty.</dd>"
    ) in ppo
    assert 'href="reward-model.html#trl_tokenreward.reward_model.modeling.TokenRewardModel"' in ppo
    assert "<p><em>Parameters that control the rewards</em></p>" in ppo
    assert '<p class="admonition-title">Note</p>' in ppo
    functional = (site / "reference/functional.html").read_text(encoding="utf-8")
    assert (
        "<p><strong>Returns</strong></p>\n<p><code>tuple[Tensor, Tensor]</code>: Advantages and returns" in functional
    )
    edits = (site / "reference/edits.html").read_text(encoding="utf-8")
    assert (
        "<li><code>ValueError</code>: If a text is not Unicode text, or the tokenizer gives no character offsets.</li>"
        in edits
    )
    for path in site.rglob("*.html"):
        text = re.sub(r"<(pre|code|script)\b.*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert "[`" not in text and "[<code>~" not in text and "<autoref" not in text, path
        # A list that Markdown did not take for one, as GitHub does.
        assert not re.search(r"<p>[^<]*\n- ", text), path


def test_formulas_are_mathml(site):
    text = (site / "mathematics.html").read_text(encoding="utf-8")
    source = (ROOT / "docs/mathematics.md").read_text(encoding="utf-8")
    assert text.count('display="block"') == len(re.findall(r"^\$\$", source, re.MULTILINE)) > 15
    assert text.count('display="inline"') > 60
    for path in site.rglob("*.html"):
        body = re.sub(r"<(pre|code|script)\b.*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert "arithmatex" not in body and not re.search(r"\$\$|\\[(\[]|<merror", body), path


def test_search_works_from_disk(site, open_page):
    page = open_page(f"{(site / 'index.html').as_uri()}?q=hold_mean_length")
    page.get_by_text(re.compile(r"\d+ matching documents")).wait_for()
    target = "reference/functional.html?h=hold_mean_length#trl_tokenreward.ppo.functional.hold_mean_length"
    assert page.locator(f'a[href$="{target}"]').count()


@pytest.mark.parametrize("name", ["index.html", "mathematics.html"])
def test_a_browser_asks_the_network_for_nothing(name, site, open_page):
    """Any request to another host fails the test, when the fixture ends."""
    page = open_page((site / name).as_uri())
    page.wait_for_load_state("networkidle")
    # It has its style sheets and scripts: what it loads is there to be refused.
    assert page.evaluate("document.styleSheets.length") >= 2
    assert page.locator("html.js").count() and page.evaluate("typeof __md_scope") == "object"
