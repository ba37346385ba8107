"""A griffe extension that makes Markdown of docstrings in Hugging Face's form, before the API reference is made of
them.

Sections become definition lists, and references such as [`TokenRewardModel`] become links where the reference has an
entry for the name. A reference to nothing is a warning, which `mkdocs build --strict` refuses.
"""

import re
from collections.abc import Iterable, Iterator
from textwrap import dedent

import griffe


SECTION = re.compile(r"(Args|Parameters|Attributes|Returns|Raises|Examples?):$")
TITLES = {"Args": "Arguments", "Examples": "Example"}
ITEM = re.compile(r"(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: \((?P<type>.*)\))?:(?P<text>.*)$")
REFERENCE = re.compile(r"\[`(?P<short>~?)(?P<name>[\w.]+)`\]")
# Packages that a docstring may refer to but that this site has no pages of.
OTHERS = ("datasets", "peft", "torch", "transformers", "trl")


class MarkdownDocstrings(griffe.Extension):
    """Rewrites every docstring of a package once it is loaded as a whole, so that references find their names."""

    def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
        for thing in _objects(pkg):
            if thing.docstring is not None:
                thing.docstring.value = to_markdown(thing.docstring.value, thing)


def _objects(thing: griffe.Object) -> Iterator[griffe.Object]:
    yield thing
    for member in thing.members.values():
        if not member.is_alias:
            yield from _objects(member)


def to_markdown(docstring: str, thing: griffe.Object) -> str:
    """The Markdown of a docstring of `thing`, whose place says what its references mean."""
    text = REFERENCE.sub(lambda match: _link(match, thing), docstring)
    blocks: list[tuple[str | None, list[str]]] = [(None, [])]
    fenced = False
    for line in text.splitlines():
        fenced ^= line.lstrip().startswith("```")
        section = None if fenced else SECTION.match(line)
        if section:
            blocks.append((section[1], []))
        elif (
            blocks[-1][0] is not None and line and not line.startswith(" ") and not blocks[-1][0].startswith("Example")
        ):
            blocks.append((None, [line]))  # what follows a section
        else:
            blocks[-1][1].append(line)
    return "\n\n".join(_section(title, lines) for title, lines in blocks).strip()


def _section(title: str | None, lines: list[str]) -> str:
    if title is None:
        return "\n".join(_notes(lines))
    body = dedent("\n".join(lines))
    if title == "Raises":
        body = re.sub(r"^(?:(\w+): |(?=`))", lambda m: f"- `{m[1]}`: " if m[1] else "- ", body, flags=re.MULTILINE)
    elif title in ("Args", "Parameters", "Attributes"):
        body = "\n".join(_definitions(body.splitlines()))
    return f"**{TITLES.get(title, title)}**\n\n{body.strip()}"


def _definitions(lines: Iterable[str]) -> Iterator[str]:
    """``name (`type`):`` and its text, indented below, as a definition list; `> Title` as a title between them."""
    first = False
    for line in lines:
        item = ITEM.match(line)
        if item:
            names = ", ".join(f"`{name}`" for name in item["names"].split(", "))
            yield from ("", f"{names} ({item['type']})" if item["type"] else names)
            first = True
            if item["text"]:
                yield f":   {item['text'].strip()}"
                first = False
        elif line.startswith("> "):
            yield from ("", f"*{line[2:]}*", "")
        elif first and line.strip():
            yield f":   {line.strip()}"
            first = False
        else:
            yield line


def _notes(lines: Iterable[str]) -> Iterator[str]:
    """GitHub's `> [!NOTE]` as an admonition."""
    inside = False
    for line in lines:
        if line.startswith("> [!"):
            inside = True
            yield from (f"!!! {line[4:].rstrip(']').lower()}", "")
        elif inside and line.startswith(">"):
            if line.startswith("> - `"):
                yield ""
            yield f"    {line[2:]}"
        else:
            inside = False
            yield line


def _link(match: re.Match, thing: griffe.Object) -> str:
    name, package = match["name"], thing.package
    if name.split(".")[0] in OTHERS:
        return f"`{name}`"
    shown = name.rsplit(".", 1)[-1] if match["short"] else name
    target = _resolve(name.removeprefix(f"{package.name}."), thing)
    if target is None:
        griffe.logger.warning(f"{thing.path}: the docstring refers to [`{name}`], which is not there.")
        return f"`{shown}`"
    # Optional: there are names without an entry, such as private ones.
    return f'<autoref optional identifier="{target}"><code>{shown}</code></autoref>'


def _resolve(name: str, thing: griffe.Object) -> str | None:
    """The path of what a name stands for where `thing` is defined, or in the package; of its class for a method that
    comes from another package."""
    scope: griffe.Object | None = thing
    while scope is not None:
        try:
            found = scope[name]
        except (KeyError, griffe.AliasResolutionError):  # `nn.modules` is this package's, not torch's
            scope = scope.parent
        else:
            return (found.final_target if found.is_alias else found).path
    owner = name.rpartition(".")[0]
    return _resolve(owner, thing) if owner[:1].isupper() else None
