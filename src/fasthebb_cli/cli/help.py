"""The pages of --help. Choices, keys and their comments are read from the files of conf/."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fasthebb_cli.cli.commands import COMMANDS
from fasthebb_cli.settings.conf import conf_directory, group_choices
from fasthebb_cli.settings.config import GROUPS

EXAMPLES = [
    ("fasthebb train", "pre-train, fine-tune, evaluate on the embedded digits"),
    ("fasthebb train dataset=imagenet rule=hpca", "the same on ImageNet (dataset.root=DIR or FASTHEBB_DATA)"),
    ("fasthebb train -m label_fraction=0.01,0.1 rule=hpca,none 'seed=range(0,3)'", "a sweep; pre-trains once a seed"),
    ("fasthebb advise dataset=image_folder dataset.root=labelled minutes=5", "what would pay on your own images"),
    ("fasthebb pretrain dataset=image_folder dataset.root=photos", "features from a folder of photographs, no labels"),
    ("fasthebb data info dataset=image_folder dataset.root=photos", "counts, mean and deviation, samples as a picture"),
    ("fasthebb data prepare dataset=imagenet out=packed", "check every image and pack them; then dataset.root=packed"),
    ("fasthebb train ... --dry-run", "what a run would do, and how long it would take"),
    ("fasthebb train ... --cfg job", "the composed configuration"),
]
FLAGS = [
    ("-m", "run every combination of comma-separated values"),
    ("--dry-run", "say what would be done: stages, labels, directories, time"),
    ("--cfg job", "print the composed configuration"),
    ("--traceback", "show where an error comes from"),
    ("--version", "print the version"),
    ("-sc install=bash", 'shell completion (also zsh, fish): eval "$(fasthebb -sc install=bash)"'),
]


def page(verb: str, lines: Mapping[str, str]) -> Group:
    """The page of a verb. Verbs that run stages share one page, which shows everything.

    Args:
        lines: verb -> what it does, in a line.
    """
    if verb in COMMANDS:
        return _command_page(verb)
    if verb in ("bench", "data", "advise"):
        return _tool_page(verb, lines[verb])
    return _whole_page(conf_directory(), lines)


def _whole_page(conf: Path, lines: Mapping[str, str]) -> Group:
    """All verbs, groups with their choices, keys, flags and examples."""
    parts: list[RenderableType] = ["[bold]fasthebb[/] VERB key=value ..."]
    parts += _section("verbs", lines.items())
    for group in (*GROUPS, "experiment", "hydra/launcher"):
        parts += _section(f"{group}=", group_choices(conf, group).items())
    parts += _section("keys", _keys(conf / "config.yaml"))
    parts += _section("flags", FLAGS)
    parts += ["", "[bold]examples[/]"]
    for command, text in EXAMPLES:
        parts.append(Padding(Text(f"$ {command}"), (0, 0, 0, 2)))
        parts.append(Padding(Text(text, style="dim"), (0, 0, 0, 6)))
    return Group(*parts)


def _tool_page(verb: str, line: str) -> Group:
    """The page of a verb with a configuration of its own: what it does, and its keys."""
    what = "" if verb == "advise" else " WHAT"
    parts: list[RenderableType] = [f"[bold]fasthebb {verb}[/]{what} key=value ...", "", Text(line)]
    parts += _section("keys", _keys(conf_directory() / f"{verb}.yaml"))
    if verb == "advise":
        parts += _section("ways", _ways(conf_directory() / "advise.yaml"))
        parts += ["", Text("and the groups and keys of fasthebb --help", style="dim")]
    else:
        parts += ["", Text("and the groups and flags of fasthebb --help", style="dim")]
    return Group(*parts)


def _ways(path: Path) -> list[tuple[str, str]]:
    """What `fasthebb advise` tries: name, and the words of `fasthebb train`."""
    return re.findall(r"^  (\w+): \[(.*)\]$", path.read_text().replace(", ", " "), re.MULTILINE)


def _command_page(name: str) -> Group:
    """The page of a command without a composed configuration: what it does, its settings, an example."""
    usage = COMMANDS[name]
    keys = " key=value ..." if usage.keys else ""
    parts: list[RenderableType] = [Text.assemble((f"fasthebb {name}", "bold"), f" {usage.paths}{keys}"), ""]
    parts.append(Text(usage.line.partition(": fasthebb")[0]))
    parts += _section("settings", [(f"{key}={setting.default}", setting.line) for key, setting in usage.keys.items()])
    parts += ["", "[bold]example[/]", Padding(Text(f"$ {usage.example}"), (0, 0, 0, 2))]
    return Group(*parts)


def _section(title: str, rows: Iterable[tuple[str, str]]) -> list[RenderableType]:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="cyan", min_width=14)
    grid.add_column(overflow="fold")
    for name, text in rows:
        grid.add_row(Text(name), Text(text))
    return ["", f"[bold]{title}[/]", Padding(grid, (0, 0, 0, 2))] if grid.row_count else []


def _keys(path: Path) -> list[tuple[str, str]]:
    """The top-level keys of a configuration file, as key=default, with their comments."""
    found = re.findall(r"^(\w+): (\S+)\s+# (.*)$", path.read_text(), re.MULTILINE)
    return [(f"{key}={value}", text) for key, value, text in found if key not in ("verb", "dry_run", "what")]
