"""Every command that a document, the help or a script's usage shows runs, scaled down, with every choice that it lists.

A command is taken as it stands in the text. A shell reads it, with programs in place of the real ones that note what
they are called with, and what `fasthebb` was called with then runs in this process. Made images lie where the command
looks for images, and SMALL says how its settings shrink: by key, never by command.
"""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from torch.distributed.run import get_args_parser
from torchvision.datasets import CIFAR10, CIFAR100

from fasthebb_cli import cli
from fasthebb_cli.bench.runs import read_plan
from fasthebb_cli.cli.commands import COMMANDS
from fasthebb_cli.cli.help import EXAMPLES
from fasthebb_cli.cli.words import read_words
from fasthebb_cli.data.dataset import EMBEDDED, _collection
from fasthebb_cli.settings.conf import conf_directory
from fasthebb_cli.settings.load import load, load_bench, load_data
from tests.data.images import class_folders, tiny_imagenet, write_cifar
from tests.data.test_dataset import write_idx
from tests.shown import DOCUMENTS, PROGRAMS, ROOT, Section, filled, sections_of, usage_of
from tests.test_experiments import NAMES, PAPER, commands_of

CLASSES, IMAGES = 2, 110  # of a made data set, images of each class to train on: two labels are 1 % of nearly all

# key of the settings -> the most that it is here; a list of numbers becomes its first and its last
SMALL = {
    "model.width": 0.02, "dataset.size": 24, "dataset.validation_samples": 8, "dataset.test_samples": 8,
    "pretrain.epochs": 1, "finetune.epochs": 1, "finetune.classifier_epochs": 1, "extra.*.epochs": 1,
    "gpu.workers": 0, "gpu.threads": 1, "workers": 0, "repeats": 1, "batch_size": 2, "hydra.sweeper.n_trials": 2,
}  # fmt: skip
UNSET = ("finetune.epochs", "gpu.threads", "batch_size")  # that null would make large
LARGE_IMAGES = ("conv10",)  # networks that need the images as they are
SMALLEST = 24  # images that conv6 takes

# key -> what is in the file that it names: two images of each class of class folders; the classes of made CIFAR-10
LISTS = {"label_subset": f"0 1 {IMAGES} {IMAGES + 1}", "dataset.classes": "class 0\nclass 1"}

# What is not run as it stands, and why
NOT_HERE = {
    "hydra/launcher=": "composed, and its cells run one after the other; tests/slurm has the launchers",
    "python -m timeit": "a measurement of the machine",
    "python -m pytest": "these tests",
    "python -m tests.": "records what these tests compare with",
    "pytest": "these tests; the file is there",
    "ruff": "not a test", "mypy": "not a test",
}  # fmt: skip
# What is composed and checked, but not run
ONLY_COMPOSED = {
    "model.name=torchvision:vgg11": "500 MB of weights a cell; tests/test_experiments.py builds the network",
    "gpu.compile=true": "compiling takes minutes; tests/fasthebb/test_learner_options.py does it",
    "what=readout": "takes minutes; tests/bench/test_readout.py does it with less",
}
# Names in a sentence, of what is a command only with more words
NAMES_ONLY = ("fasthebb bench", "fasthebb report", "fasthebb data prepare", "sbatch --ntasks=8 scripts/job.sh")

_SAY = """#!/bin/bash
printf '%s\\n' "$(printf '%q ' "$(basename "$0")" "$@")" >>"$CALLED"
"""
# a task of an array has its words in a file; where there is none yet, it is written
_SUBMIT = """#!/bin/bash
while [[ $1 == -* ]]; do
  [[ $1 != --array=* ]] || export SLURM_ARRAY_TASK_ID=1
  shift
done
[[ $2 != @* ]] || [ -e "${2#@}" ] || echo train seed=1 >"${2#@}"
SLURM_JOB_ID=1 SLURM_NNODES=1 SLURM_JOB_NODELIST=node1 "$@" >/dev/null && echo 1
"""
# Programs as the shell sees them: they note their words; those of SLURM go on to what they are given to run
STAND_INS = dict.fromkeys(("torchrun", "python", "pytest", "pip", "ruff", "mypy"), _SAY) | {
    "fasthebb": _SAY + "[ \"$1\" != cells ] || printf -- '-\\ttrain seed=1\\n'",
    "srun": '#!/bin/bash\nwhile [[ $1 == -* ]]; do shift; done\nexec "$@"',
    "scontrol": "#!/bin/sh\necho node1",
    "sbatch": _SUBMIT,
    "make": f'#!/bin/sh\nexec /usr/bin/make --silent -f {ROOT}/Makefile BIN="$(dirname "$0")" -o .venv/installed "$@"',
}  # fmt: skip


class Place:
    """A folder in which the commands of a text run one after the other.

    Args:
        folder: empty; the working directory meanwhile.
        images: see `made_images`.
        say: what a command has written since it was last asked.
    """

    def __init__(self, folder: Path, images: Path, say: Callable[[], str]) -> None:
        self.folder, self.images, self.say = folder, images, say
        (folder / "scripts").symlink_to(ROOT / "scripts")
        programs = folder / ".programs"
        programs.mkdir()
        for name, text in STAND_INS.items():
            (programs / name).write_text(text)
            (programs / name).chmod(0o755)

    def run(self, command: str, *, last: bool = False) -> None:
        """Runs a command, as typed; last: of lists of numbers only the last one."""
        if re.search(r"(?<![\w=])runs\b", command) and not (self.folder / "runs").exists():
            self.fasthebb(shlex.split(MADE_RUNS), last=True)
        for program, *words in self.called(command):
            if any(f"{program} {' '.join(words)}".startswith(start) for start in NOT_HERE):
                files = [word for word in words if word.endswith(".py")]
                assert all((ROOT / name).is_file() for name in files), f"{command}: a file is not there"
            elif program == "pip":
                _check_extras(words)
            elif program == "python":
                _run_script(words)
            elif program == "torchrun":
                given = get_args_parser().parse_args(words)
                assert given.module, command
                assert given.training_script == "fasthebb_cli", command
                self.fasthebb(given.training_script_args, last=last)
            else:
                assert program == "fasthebb", f"{command}: {program} is not known here"
                self.fasthebb(words, last=last)

    def called(self, command: str) -> list[list[str]]:
        """Each program and its words, of those that the shell calls for a command."""
        record = self.folder / ".called"
        record.write_text("")
        path = f"{self.folder / '.programs'}:/usr/bin:/bin"
        environment = {"PATH": path, "HOME": str(self.folder), "CALLED": str(record)}
        done = subprocess.run(["bash", "-c", command], cwd=self.folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        calls = [shlex.split(line) for line in record.read_text().splitlines()]
        assert calls or "make help" in command, f"{command}: calls nothing"
        return calls

    def fasthebb(self, words: list[str], *, last: bool = False) -> None:
        words = [self.word(word) for word in words]
        for key, lines in LISTS.items():
            for name in [word.partition("=")[2] for word in words if word.startswith(f"{key}=")]:
                (self.folder / name).write_text(lines)
        if words[:2] == ["bench", "run"]:  # what its plan names; the programs beside are in tests/bench/test_runs.py
            plans = [word.partition("=")[2] for word in words if word.startswith("plan=")]
            for commands in [found for plan in plans for found in read_plan(str(ROOT / plan))["runs"].values()]:
                for command in commands.values():
                    program, *own = shlex.split(command.format(out="runs", shared="", seed=0))
                    if program == "fasthebb":
                        self.fasthebb(own, last=last)
            for name in [word.partition("=")[2] for word in words if word.startswith("json=")]:
                shutil.copy(ROOT / "docs" / "benchmarks" / name, self.folder / name)
            return
        if words[:1] == ["cells"]:  # and the cells that it lists
            self.fasthebb([words[1], "-m", *words[2:]], last=last)
        small = scaled(words, last=last)
        if small is None:
            return
        self.provide(small)
        GlobalHydra.instance().clear()
        code = cli.run(small)
        said = self.say()
        assert code == 0, f"fasthebb {shlex.join(words)}\n  as: fasthebb {shlex.join(small)}\n{said}"

    def word(self, word: str) -> str:
        """With a folder of this place for one of the whole machine, and a stage's directory for its name."""
        word = re.sub(r"^([\w.]+=)?(/(?:data|fast)/)", rf"\g<1>{self.folder}\g<2>", word)
        learnt = [path.parent for path in self.folder.glob("runs/*/model.safetensors")]
        newest = sorted(learnt, key=lambda path: path.stat().st_mtime_ns, reverse=True)
        for name, k in (("DIRECTORY", 0), ("OTHER", 1)):
            if f"runs/{name}" in word:
                word = word.replace(f"runs/{name}", f"runs/{newest[k].name}")
        return word

    def provide(self, words: list[str]) -> None:
        """Made images, and archives of them, where a command looks for images and none are."""
        settings = dict(word.split("=", 1) for word in words if "=" in word)
        if "archive" in settings:
            _pack(self.images / settings["dataset"], self.folder / settings["archive"])
        elif "dataset.root" in settings:
            _lay(self.images / settings.get("dataset", "image_folder"), self.folder / settings["dataset.root"])
        elif not (self.folder / "data").exists():
            for part in ("cifar10", "cifar100", "fashion_mnist", "tiny_imagenet", "imagenet"):
                shutil.copytree(self.images / part, self.folder / "data", copy_function=os.link, dirs_exist_ok=True)
        if words[0] in ("predict", "features"):
            _lay(self.images / "image_folder", self.folder / words[2])


MADE_RUNS = "train -m dataset=digits rule=hpca,none label_fraction=0.1"  # for commands that read runs


def _lay(images: Path, root: Path) -> None:
    if not root.exists():
        shutil.copytree(images, root, copy_function=os.link)


def _pack(images: Path, archive: Path) -> None:
    """A tar or zip file with the folder in it."""
    files = sorted(path for path in images.rglob("*") if path.is_file())
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for path in files:
                packed.write(path, path.relative_to(images))
    else:
        with tarfile.open(archive, "w") as tar:
            for path in files:
                tar.add(path, path.relative_to(images))


def _check_extras(words: list[str]) -> None:
    """Those of `pip install '.[a,b]'` are the package's."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = re.findall(r"\[(.*?)\]", " ".join(words))
    assert wanted
    assert set(wanted[0].split(",")) <= set(known)


def _run_script(words: list[str]) -> None:
    before, sys.argv = sys.argv, words
    try:
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    finally:
        sys.argv = before


def scaled(words: list[str], *, last: bool = False) -> list[str] | None:
    """The words of a command with small settings; None where that can't be made small enough to be run.

    The command as it stands is composed first, so that what shrinks is valid, too.
    """
    verb, *rest = [word for word in words if not word.startswith("hydra/launcher=")] if words else [""]
    if verb in COMMANDS or verb.startswith("-"):
        return words
    if verb == "advise":  # tests/cli/test_advise.py tries all ways
        own = [word for word in rest if word.startswith(("minutes=", "folds=", "ways="))]
        small = scaled(["train", *(word for word in rest if word not in own)])
        assert small is not None
        return ["advise", *small[1:], "ways=random", "minutes=30"]
    rest = [word for word in rest if not word.startswith("hydra.launcher.")]
    first, config, kind = {"bench": ("what", load_bench, "bench"), "data": ("what", load_data, "data")}.get(
        verb, ("verb", load, "config")
    )
    given = words[1:]
    named = [f"{first}={verb}"] if first == "verb" else [f"what={given[0]}"]
    if verb == "cells":
        named, given = [f"verb={given[0]}", "-m"], given[1:]
    if first == "what":
        given = given[1:]
    composed = composed_from(kind, [*named, *given], config)
    flat = _flat(composed)
    if any(f"{key}={str(value).lower()}" in ONLY_COMPOSED for key, value in flat.items()):
        return None
    shrunk = [_few(word, last=last) for word in rest]
    more = _smaller(composed, shrunk, embedded=composed.dataset.name in EMBEDDED, verb=verb)
    return [verb, *shrunk, *more]


def composed_from(kind: str, words: list[str], check: Callable[[DictConfig], object]) -> DictConfig:
    """What a command composes, launcher and sweeper included: the first cell's where it is a sweep."""
    overrides = read_words(kind, words[0], words[1:]).lines
    cell = [_values(word)[0] if _values(word) else word for word in overrides]
    if any(word.startswith("hydra.launcher.") for word in cell) and not any("hydra/launcher=" in word for word in cell):
        cell.append("hydra/launcher=slurm_nodes")
    if site := os.environ.get("FASTHEBB_CONF"):
        cell.append(f"hydra.searchpath=[file://{site}]")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_directory()), version_base="1.3"):
        composed = compose(kind, cell, return_hydra_config=True)
    OmegaConf.set_struct(composed, False)
    launcher = composed.pop("hydra").launcher
    assert launcher._target_
    check(composed)
    return composed


def _values(word: str) -> list[str]:
    """key=value of each value that a word sweeps over; none: it sweeps over nothing."""
    override = OverridesParser.create().parse_override(word)
    if not override.is_sweep_override():
        return []
    key = word.partition("=")[0]
    if override.is_interval_sweep():
        return [f"{key}={override.value().start}"]  # type: ignore[union-attr]
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _few(word: str, *, last: bool) -> str:
    """A list of numbers becomes its first and its last, or its last; of seeds, which are no choice, one is left."""
    if "=" not in word or word.startswith("-"):
        return word
    key, _, value = word.partition("=")
    values = [item.partition("=")[2] for item in _values(word)]
    if "interval" in value or len(values) < 2 or not all(re.fullmatch(r"[\d.]+", item) for item in values):
        return word
    return f"{key}={values[-1]}" if last or key == "seed" else f"{key}={values[0]},{values[-1]}"


def _smaller(composed: DictConfig, words: list[str], *, embedded: bool, verb: str) -> list[str]:
    """Overrides for what is larger than SMALL."""
    if verb == "bench" and composed.model.name not in LARGE_IMAGES and composed.what != "data":
        words = [*words, f"size={SMALLEST}"]
        more = [f"size={SMALLEST}"]
    else:
        more = []
    for key, value in _flat(composed).items():
        for pattern, most in SMALL.items():
            if not fnmatch(key, pattern) or (key == "dataset.size" and composed.model.name in LARGE_IMAGES):
                continue
            if (value is None and key in UNSET) or (isinstance(value, int | float) and value > most):
                more.append(f"{key}={most}")
    more += [f"{key}={most}" for key, most in SMALL.items() if any(word.startswith(f"{key}=") for word in words)
             and key.startswith("hydra.")]  # fmt: skip
    gpu = composed.get("gpu", {})
    if gpu.get("device") == "cuda":
        more.append("gpu.device=cpu")
    if gpu.get("precision") == "tf32":
        more.append("gpu.precision=fp32")
    if verb not in ("bench", "data"):
        fractions = [word.partition("=")[2] for word in words if word.startswith("label_fraction=")]
        least = min(float(value) for value in (fractions[-1].split(",") if fractions else [composed.label_fraction]))
        classes = 10 if embedded else CLASSES
        more.append(f"dataset.train_samples={max(32, round(classes / least))}")
        if embedded:
            more.append("dataset.test_samples=16")
        if composed.get("label_subset") == "random":
            more.append("label_subset=stratified")  # two labels that are drawn may be of one class, which is refused
    return more


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Values by their whole key; interpolations stay as they are, since `data` has groups that lack what they name."""
    if isinstance(node, DictConfig):
        node = OmegaConf.to_container(node, resolve=False)
    if isinstance(node, dict) and node:
        return {key: value for part in node for key, value in _flat(node[part], f"{prefix}.{part}").items()}
    return {prefix[1:]: node}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes in the layout of each data set, in a folder named after it."""
    folder = tmp_path_factory.mktemp("images")
    counts = {"a": IMAGES, "b": IMAGES}
    class_folders(folder / "image_folder/train", counts)
    class_folders(folder / "image_folder/test", {"a": 8, "b": 8}, first=900)
    class_folders(folder / "imagenet/imagenet/train", {"n1": IMAGES, "n2": IMAGES})
    class_folders(folder / "imagenet/imagenet/val", {"n1": 2, "n2": 2}, first=900)
    tiny_imagenet(folder / "tiny_imagenet", train=IMAGES)
    for name, cls in (("cifar10", CIFAR10), ("cifar100", CIFAR100)):
        write_cifar(cls, folder / name, train=CLASSES * IMAGES, classes=CLASSES)
    write_idx(folder / "fashion_mnist/fashion-mnist", packed=True, train=700, test=16, classes=CLASSES)
    return folder


@pytest.fixture
def place(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTHEBB_DATA", raising=False)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: os.path.isfile(path))
    _collection.cache_clear()  # what a relative path means is another thing here

    def say() -> str:
        captured = capsys.readouterr()
        return captured.out + captured.err

    return Place(tmp_path, images, say)


SECTIONS = [section for document in DOCUMENTS for section in sections_of(document)]


def _marked(name: str, long: bool, value: object = None) -> Any:
    """A parameter; a long one, whose commands are much like those of the README, is for `.ci/run`."""
    return pytest.param(value or name, marks=pytest.mark.marathon if long else (), id=name)


def _title(section: Section) -> str:
    return f"{section.document} {section.heading}"


def _is_long(document: str) -> bool:
    return document.startswith("docs/")


WITH_COMMANDS = [_marked(_title(section), _is_long(section.document), section) for section in SECTIONS
                 if section.commands]  # fmt: skip
# of experiments that are compared, all show the one command; the test is called by the first of them
OF_EXPERIMENTS = {shlex.join(words): name for name in reversed(NAMES) for words in commands_of(name)}
WITH_OVERRIDES = sorted({section.document for section in SECTIONS if section.overrides})


def files_of(document: str, home: Path) -> Path | None:
    """Writes the file of settings that a document shows, below home; gives the folder that FASTHEBB_CONF shall name."""
    shown = re.search(
        r"^```yaml\n# ~/(\S+), found through FASTHEBB_CONF=~/(\S+)\n(.*?)^```",
        (ROOT / document).read_text(),
        re.M | re.S,
    )
    if shown is None:
        return None
    path, site, text = shown.groups()
    (home / path).parent.mkdir(parents=True)
    (home / path).write_text(text)
    return home / site


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("default")  # Optuna, and what it imports, warn
@pytest.mark.parametrize("section", WITH_COMMANDS)
def test_the_commands_of_a_section_run(
    place: Place, section: Section, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if written := files_of(section.document, tmp_path):
        monkeypatch.setenv("FASTHEBB_CONF", str(written))
    for command in dict.fromkeys(section.commands):
        if command not in NAMES_ONLY:
            place.run(filled(command))


# top-level key of overrides that the text shows by themselves -> the command that they stand for; else it is `train`
STAND_FOR = {
    "format": "data prepare dataset=imagenet dataset.root=photographs out=packed",
    "archive": "data prepare dataset=imagenet dataset.root=unpacked",
    "naive": "bench step",
    "repeats": "bench step",
    "layer": "features runs/DIRECTORY photos",
    "pool": "features runs/DIRECTORY photos",
    "trust": "predict runs/DIRECTORY photos",
    "dataset.labels": "data info dataset=image_folder dataset.root=photographs",
}


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("document", [_marked(name, _is_long(name)) for name in WITH_OVERRIDES])
def test_overrides_that_the_text_shows_run(place: Place, document: str) -> None:
    shown = [words for section in SECTIONS if section.document == document for words in section.overrides]
    for words in dict.fromkeys(map(filled, shown)):
        verb = STAND_FOR.get(words.partition("=")[0], "train")
        if verb == "train" and "dataset=" not in words:
            verb = "train dataset=cifar10"
        place.run(f"fasthebb {verb} {words}")


@pytest.mark.slow
def test_the_examples_of_the_help_run(place: Place) -> None:
    for command, _ in EXAMPLES:
        place.run(filled(command))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_command_runs(place: Place, name: str) -> None:
    place.run(COMMANDS[name].example)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("command", [_marked(name, name in PAPER, words) for words, name in OF_EXPERIMENTS.items()])
def test_the_command_of_an_experiment_runs(place: Place, command: str) -> None:
    place.run(f"fasthebb train {command}", last=True)


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.sh")), ids=lambda path: path.name)
def test_the_usage_of_a_script_runs(place: Place, script: Path) -> None:
    commands = usage_of(script)
    assert len(commands) >= 2
    for command in commands:
        place.run(filled(command), last=True)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_command_of_a_document_is_overlooked(document: str) -> None:
    """Lines that begin with a program, as they are found without knowing how the text is built."""
    found = [command for section in SECTIONS if section.document == document for command in section.commands]
    assert found
    lines = re.findall(
        r"^(?:\$ )?(?:(?:fasthebb|torchrun|sbatch|python|make) |scripts/\S).*", (ROOT / document).read_text(), re.M
    )
    for line in lines:
        start = re.split(r" +#|\\", line.removeprefix("$ "))[0].strip()
        assert any(command.startswith(start) for command in found) or "`" in line, line
    for command in found:
        assert command.split("/")[0].split(" ")[0] in PROGRAMS, f"{command}: no test knows this program"


def test_exceptions_are_still_shown() -> None:
    shown = [command for section in SECTIONS for command in section.commands]
    assert set(NAMES_ONLY) <= set(shown)
    text = "\n".join([*shown, *(words for section in SECTIONS for words in section.overrides)])
    for key in STAND_FOR:
        assert f"{key}=" in text, key


def test_the_list_of_what_is_checked_names_modules_and_tests_that_are_there() -> None:
    rows = re.findall(r"^\| .* \|$", (ROOT / "docs/robustness.md").read_text(), re.MULTILINE)
    kinds = [row.strip("| ").split(" | ") for row in rows if not row.startswith("| what")]
    assert len(kinds) > 20
    for _, modules, tests in kinds:
        for top, names in (("src", modules), ("tests", tests)):
            for name in re.findall(r"`([^`]+)`", names):
                assert (ROOT / top / name).is_file(), name
