"""What MkDocs does not do by itself: formulas, the command line's help, and files of the repository beside `docs`."""

import argparse
import os
import re
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page


ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LINK = re.compile(r"\]\((?P<path>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
FORMULA = re.compile(r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<latex>.*?)\\[)\]]</(?P=tag)>', re.DOTALL)
HELP = "<!-- the help of every command -->"


# --- files beside docs -----------------------------------------------------------------------------------------------
# Pages link to results, examples and the changelog as they lie in the repository, so that the links work there. The
# files that are linked to become part of the site, and links point to where they are in it.


def on_files(files: Files, config: MkDocsConfig) -> Files:
    todo = [Path(file.abs_src_path) for file in files.documentation_pages()]
    done = set()
    while todo:
        page = todo.pop()
        for target in _targets(page):
            if target not in done and not target.is_relative_to(DOCS):
                done.add(target)
                files.append(
                    File.generated(config, _uri(target), abs_src_path=str(target), inclusion=InclusionLevel.NOT_IN_NAV)
                )
                if target.suffix == ".md":
                    todo.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    source = Path(page.file.abs_src_path)
    folder = Path(page.file.src_uri).parent

    def moved(match: re.Match) -> str:
        target = (source.parent / match["path"]).resolve()
        if not target.is_file() or not target.is_relative_to(ROOT):
            return match[0]
        return f"]({os.path.relpath(_uri(target), folder)}{match['anchor'] or ''})"

    markdown = LINK.sub(moved, markdown)
    return markdown.replace(HELP, "\n".join(command_line_help())) if HELP in markdown else markdown


def _targets(page: Path) -> Iterator[Path]:
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        target = (page.parent / match["path"]).resolve()
        if target.is_file() and target.is_relative_to(ROOT):
            yield target


def _uri(path: Path) -> str:
    return path.relative_to(DOCS if path.is_relative_to(DOCS) else ROOT).as_posix()


# --- the command line ------------------------------------------------------------------------------------------------


def command_line_help() -> Iterator[str]:
    """The help of `trl-tokenreward` and of each of its commands, as its parsers give it."""
    sys.path.insert(0, str(ROOT))
    try:
        from trl_tokenreward.cli.main import build_parser
    finally:
        sys.path.remove(str(ROOT))
    parser = build_parser()
    [commands] = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for each in (parser, *commands.choices.values()):
        each.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=90)
        yield from ("", f"## `{each.prog}`", "", "```text", each.format_help().rstrip(), "```")


# --- formulas --------------------------------------------------------------------------------------------------------


def on_page_content(html: str, **kwargs: Any) -> str:
    """Formulas as MathML, which browsers draw by themselves."""
    return FORMULA.sub(_mathml, html)


def _mathml(match: re.Match) -> str:
    mathml = convert(unescape(match["latex"]).strip(), display="inline" if match["tag"] == "span" else "block")
    # LaTeX sets a logarithm apart from what it is of.
    return re.sub(r"(<mi>log</mi>)(?!<mo)", r'\1<mspace width="0.17em"/>', mathml)
