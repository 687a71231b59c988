"""What documents show: every command in their text, in the order in which a reader meets them.

Commands stand in blocks of shell, in blocks that show a session (lines that begin with `$ `), and between backquotes in
the text, where overrides alone stand for a command too. Nothing here knows what a command means.
"""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]
PROGRAMS = ("fasthebb", "torchrun", "sbatch", "srun", "scripts", "make", "eval", "python", "pytest", "pip")
# What a reader replaces by something of his own -> one such thing
PLACEHOLDERS = {
    r"\[(SBATCH )?OPTIONS\]": "--time=1", r"\[out=FOLDER\]": "out=FOLDER", r"\[RUNS \.\.\.\]": "runs",
    r"\bVERB\b": "train", r"\bWHAT\b": "step", r"\bNAME\b": "tiny_imagenet", r"\bFILE\b": "sample.tar",
    r"\bkey=value\b": "seed=1", r"\bkey=a,b\b": "rule=hpca,none", r" \.\.\.": "", r"\b(FOLDER|DIR)\b": "folder",
}  # fmt: skip
_OVERRIDE = r"\+?[a-z][\w/@.]*=[^\s=]\S*"
_AGAIN = r"(?:once more|the command above) with `([^`]+)`"  # of text: the command before it with other settings


class Section(NamedTuple):
    """A document's text below one heading: its commands, as typed, and its sets of overrides."""

    document: str
    heading: str
    commands: list[str]
    overrides: list[str]


def sections_of(document: str) -> list[Section]:
    """Those that show a command or overrides."""
    text = (ROOT / document).read_text()
    pieces = re.split(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    found = [Section(document, "", [], [])]
    for prose, language, block in zip(pieces[::3], [*pieces[1::3], ""], [*pieces[2::3], ""], strict=True):
        for i, part in enumerate(re.split(r"^#+ (.*)$", prose, flags=re.MULTILINE)):
            if i % 2:
                found.append(Section(document, part, [], []))
            else:
                _add_text(found[-1], part)
        if language == "sh":
            found[-1].commands.extend(_commands_of(block))
        elif not language:
            found[-1].commands.extend(re.findall(r"^\$ (.*)$", block, re.MULTILINE))
    return [section for section in found if section.commands or section.overrides]


def _add_text(section: Section, text: str) -> None:
    """What stands between backquotes, in any line but for several that a line break cuts."""
    again = {" ".join(words.split()) for words in re.findall(_AGAIN, text)}
    for shown in re.findall(r"`([^`]+)`", text):
        words = " ".join(shown.split())
        if words in again:
            section.commands.append(with_settings(section.commands[-1], words.split()))
        elif words.split("/")[0].split(" ")[0] in PROGRAMS and " " in words:
            section.commands.append(words)
        elif re.fullmatch(rf"{_OVERRIDE}( {_OVERRIDE})*", words):
            section.overrides.append(words)


def _commands_of(block: str) -> list[str]:
    """Commands of a block of shell; one with a comment such as "# and rule=swta" is two."""
    found = []
    for line in re.sub(r"\\\n *", "", block).splitlines():
        command, _, comment = line.partition(" # ")
        if not command.strip() or command.startswith("#"):
            continue
        found.append(command.strip())
        if comment.startswith("and ") and (settings := re.findall(_OVERRIDE, comment)):
            found.append(with_settings(command.strip(), [setting.rstrip(",:") for setting in settings]))
    return found


def with_settings(command: str, settings: list[str]) -> str:
    """A command, as typed, with other values; keys that it doesn't have are added."""
    keys = {setting.partition("=")[0] for setting in settings}
    kept = [word for word in re.split(r" +", command) if word.partition("=")[0].strip("'") not in keys]
    return " ".join([*kept, *settings])


def usage_of(script: Path) -> list[str]:
    """Commands of the text that a script prints with --help: indented, described after a gap."""
    lines = re.sub(r"\\\n *", "", script.read_text()).splitlines()
    shown = [line.strip() for line in lines if re.match(r"  (sbatch|scripts/)", line)]
    return [re.split(r" {3,}", line)[0] for line in shown]


def filled(command: str) -> str:
    """With something in place of each placeholder."""
    for pattern, value in PLACEHOLDERS.items():
        command = re.sub(pattern, value, command)
    return command.strip()
