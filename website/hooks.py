"""What mkdocs asks for while it builds the site: pages that are made from the code and from files
outside docs/.

- `reference/cli/COMMAND.md`: every command's usage, text and options, from the command tree itself;
- `reference/methods.md`: what `blemish methods NAME` says of each;
- `examples/NAME.md`: the executed notebooks in examples/, with their pictures;
- CHANGELOG, CONTRIBUTING, SECURITY, as they lie in the root.
"""

from __future__ import annotations

import base64
import contextlib
import html
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
ROOT_PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
SERVING = ROOT / "examples" / "serving" / "README.md"


def on_config(config: Any) -> Any:
    """The parts of the navigation that are made of what there is."""
    commands = [{name: f"reference/cli/{stem(name)}.md"} for name, _ in leaves()]
    examples = [{title_of(path): f"examples/{path.stem}.md"} for path in NOTEBOOKS]
    for section in config.nav:
        for name, entries in section.items():
            if name == "Examples":
                section[name] = [*examples, {"Clients of the service": "examples/serving.md"}]
            for entry in entries:
                if isinstance(entry, dict) and "Command line" in entry:
                    entry["Command line"] = commands
    return config


def on_files(files: Files, config: Any) -> Files:
    """The pages that lie in no folder of docs/."""
    made: dict[str, str | bytes] = {
        name: relinked((ROOT / name).read_text(encoding="utf-8")) for name in ROOT_PAGES
    }
    made["examples/serving.md"] = relinked(SERVING.read_text(encoding="utf-8"), up="../")
    for path in (*SERVING.parent.glob("*.py"), *SERVING.parent.glob("*.sh")):
        made[f"examples/{path.name}"] = path.read_text(encoding="utf-8")
    made["reference/methods.md"] = methods_page()
    for name, command in leaves():
        made[f"reference/cli/{stem(name)}.md"] = command_page(name, command)
    for path in NOTEBOOKS:
        made |= notebook_pages(path)
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links of pages in docs/ to what lies beside docs/, where the site has it."""
    markdown = markdown.replace("](../SECURITY.md)", "](SECURITY.md)")
    return markdown.replace("](../examples/serving)", "](examples/serving.md)")


def relinked(text: str, up: str = "") -> str:
    """A page of the root as one of docs/."""
    text = re.sub(r"\]\((?:\.\./)*docs/", f"]({up}", text)
    return re.sub(r"`docs/([\w/-]+\.md)`", rf"[`docs/\1`]({up}\1)", text)


# --- the command line


def leaves() -> Iterator[tuple[str, Any]]:
    """("data check", its command), of all, in the order of `blemish --help`."""
    from blemish.cli import app

    def below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        for word, one in getattr(command, "commands", {}).items():
            yield from below(f"{name} {word}".strip(), one)
        if not hasattr(command, "commands") or (command.params and name == "bench"):
            yield name, command

    yield from below("", app.command_tree())


def stem(name: str) -> str:
    return name.replace(" ", "-")


def command_page(name: str, command: Any) -> str:
    """Usage, text, arguments and options of a command, as its `--help` has them."""
    context = command.make_context(f"blemish {name}", [], resilient_parsing=True)
    usage = " ".join(" ".join(command.get_usage(context).split()).split(": ", 1)[1:])
    lines = [f"# blemish {name}", "", f"    {usage}", "", plain(command.help or ""), ""]
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option"]
    for title, params in (("Arguments", arguments), ("Options", options)):
        rows = [one.get_help_record(context) for one in params]
        rows = [row for row in rows if row]
        if rows:
            lines += [f"## {title}", "", "| | |", "|---|---|"]
            lines += [f"| {code(names)} | {plain(text)} |" for names, text in rows]
            lines.append("")
    if command.epilog:
        lines += [plain(command.epilog), ""]
    return "\n".join(lines)


def code(names: str) -> str:
    return "<code>" + html.escape(names).replace("|", "&#124;").replace("\n", " ") + "</code>"


def plain(text: str) -> str:
    """Words of the command line: no character of them is markup but their `code`."""
    parts = " ".join(text.split()).split("`")
    for at in range(0, len(parts), 2):
        parts[at] = re.sub(r"([*_\[\]])", r"\\\1", html.escape(parts[at], quote=False))
    return "`".join(parts).replace("|", "&#124;")


# --- methods


def methods_page() -> str:
    """Of each method what it does, its source, its settings and its recipes."""
    lines = [
        "# Methods and their settings",
        "",
        "What `blemish methods` and `blemish methods NAME` say, of every method. Settings are "
        "given as `--set NAME=VALUE`, or by name to `blemish.fit`.",
        "",
    ]
    for listed in answer("methods"):
        one = answer("methods", listed["name"])
        lines += [f"## {one['name']}", "", plain(one["summary"]) + "."]
        lines += ["", f"*{plain(one['source'])}*", ""]
        lines += ["| setting | default | meaning |", "|---|---|---|"]
        for setting in one["settings"]:
            default = json.dumps(setting["default"], ensure_ascii=False)
            lines.append(f"| `{setting['name']}` | {code(default)} | {plain(setting['about'])} |")
        for recipe in one["recipes"]:
            changes = [f"{key}={json.dumps(value)}" for key, value in recipe["changes"].items()]
            told = f" {code(', '.join(changes))}" if changes else ""
            lines += ["", f"Recipe `{recipe['name']}`: {plain(recipe['about'])}{told}"]
        lines.append("")
    return "\n".join(lines)


def answer(*words: str) -> Any:
    """The JSON document of a command."""
    from blemish import cli

    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = cli.main([*words, "--json"])
    if status:
        raise RuntimeError(f"blemish {' '.join(words)}: {said.getvalue()}")
    return json.loads(said.getvalue())


# --- notebooks


def title_of(path: Path) -> str:
    first = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
    return first.partition("\n")[0].lstrip("# ")


def notebook_pages(path: Path) -> dict[str, str | bytes]:
    """A notebook as a page, and each of its pictures as a file beside it."""
    pages: dict[str, str | bytes] = {}
    lines: list[str] = []
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines += [relinked(source, up="../"), ""]
            continue
        lines += ["```python", source, "```", ""]
        for at, output in enumerate(cell["outputs"]):
            data = output.get("data", {})
            text = "".join(output.get("text", data.get("text/plain", [])))
            picture = next((kind for kind in ("image/png", "image/jpeg") if kind in data), "")
            if picture:
                name = f"{path.stem}-{number}-{at}.{picture.rpartition('/')[2]}"
                pages[f"examples/{name}"] = base64.b64decode("".join(data[picture]))
                lines += [f"![Output of the code above]({name})", ""]
            elif text:
                lines += ["```text", text.rstrip("\n"), "```", ""]
    lines += [f"*Run as it is: `examples/{path.name}`.*", ""]
    return {f"examples/{path.stem}.md": "\n".join(lines), **pages}
