"""Where the configuration files are, and what choices a group of them has."""

from pathlib import Path


def conf_directory() -> Path:
    """The configuration groups: inside the installed package, or beside the sources in a checkout."""
    installed = Path(__file__).parents[1] / "conf"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "conf"


def group_choices(conf: Path, group: str) -> dict[str, str]:
    """The choices of a group with the comment that opens each one's file."""
    choices = {}
    for path in sorted((conf / group).rglob("*.yaml")):
        comments = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
        first = comments[0]
        choices[str(path.relative_to(conf / group).with_suffix(""))] = first.removeprefix("#").strip()
    return choices
