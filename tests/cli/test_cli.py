"""The command as users see it: verbs, help, sweeps, and one line and the right exit code for every bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

import fasthebb_cli
from fasthebb.learner import HebbianLearner
from fasthebb_cli import cli
from fasthebb_cli.cli.commands import COMMANDS
from fasthebb_cli.cli.verbs import VERBS
from fasthebb_cli.console.formats import printable
from fasthebb_cli.errors import Interrupted, RunError
from fasthebb_cli.run import stage
from fasthebb_cli.run.directory import holder_of
from fasthebb_cli.settings.conf import conf_directory
from fasthebb_cli.settings.stages import STAGES_OF_VERB
from tests.conftest import SMALL, Ran
from tests.data.images import class_folders
from tests.lives import PATIENCE

Command = Callable[..., Ran]

BAD_INPUT = {
    "unknown verb": (["trian"], "choose from: train, pretrain, finetune, "),
    "unknown key": (["train", "lable_fraction=0.1"], "did you mean label_fraction"),
    "unknown key of a group": (["train", "pretrain.epoch=3"], "did you mean pretrain.epochs"),
    "unknown added key": (["train", "+pretrain.speed=3"], "unknown key pretrain.speed; pretrain accepts: kind, epochs"),
    "unknown choice": (["train", "rule=foo"], "rule can be: bcm, gha, hebb"),
    "no choice": (["train", "rule=null"], "rule"),
    "wrong type": (["train", "pretrain.epochs=many"], "pretrain.epochs"),
    "out of range": (["train", "label_fraction=0"], "label_fraction must be in (0, 1]"),
    "above range": (["train", "label_fraction=1.5"], "label_fraction must be in (0, 1]"),
    "negative epochs": (["train", "pretrain.epochs=-1"], "pretrain.epochs must be at least 0"),
    "bad schedule": (["train", "finetune.schedule=often"], "finetune.schedule must be one of constant"),
    "too few labels": (["train", "label_fraction=0.005"], "label_fraction"),
    "unknown choice in a folder": (["train", "rule=paper/nope"], "rule=paper/nope: no such choice; rule can be: bcm"),
    "objective without a stage": (["train", "objective=top1"], "objective=top1 must be STAGE.METRIC of pretrain,"),
    "objective that is no metric": (
        ["train", "objective=evaluate.tpo1", "evaluate.split=validation"],
        "objective=evaluate.tpo1 is no metric; there are: top1, top5, balanced_top1, loss, calibration_error, seconds,",
    ),
    "objective on test": (["train", "objective=evaluate.top1"], "choose on test images; use evaluate.split=validation"),
    "objective of the last epoch": (["train", "objective=finetune.top1"], "with finetune.select=best only"),
    "unknown stage": (["train", "stages=[pretrain,head]"], "unknown stage 'head'; choose from: pretrain"),
    "no stages": (["train", "stages=[]"], "stages is empty"),
    "extra without a kind": (["train", "+extra.head.epochs=5"], "extra.head.kind must be one of"),
    "unknown rule option": (["train", "+rule.options.speed=3"], "unknown option 'speed' of hpca; it accepts: denom"),
    "unknown flag": (["train", "--fast"], "unknown flag --fast"),
    "no equals sign": (["train", "hpca"], "can't read 'hpca'; an override is key=value"),
    "unknown model option": (["train", "+model.options.depth=3"], "unknown key model.depth"),
    "images too small": (["train", "dataset.size=8"], "conv2"),
    "nothing to pre-train": (["pretrain", "rule=none"], "nothing to pre-train"),
    "stage before is missing": (["finetune"], "pretrain is not finished"),
    "no such device": (["train", "gpu.device=toaster"], "gpu.device"),
    "precision needs a GPU": (["train", "gpu.precision=tf32"], "gpu.precision=tf32 needs gpu.device=cuda"),
    "unparsable": (["train", "pretrain.layer_lr={fc5"], "can't read"),
    "several values without -m": (["train", "rule=hpca,swta"], "need -m"),
    "unknown layer": (["train", "finetune.layer=conv9"], "no layer 'conv9'; the network has: conv1"),
    "no such file": (["train", "init_from=nowhere.safetensors"], "init_from"),
    "no data": (["train", "dataset=cifar10", "dataset.root=/nonexistent"], "/nonexistent"),
    "extra is no mapping": (["train", "extra=5"], "extra must be a mapping"),
    "unknown rule option value": (["train", "rule.options.denominator=patchs"], "denominator must be patches or power"),
    "no temperature": (["train", "rule=swta", "rule.options.temperature=0"], "temperature must be above 0"),
    "damping is a word": (
        ["train", "rule.options.damping=high"],
        "damping must be a number, not 'high'",
    ),
    "damping below 0": (["train", "rule.options.damping=-1"], "damping must be at least 0"),
    "images that are too small": (["train", "model=torchvision:alexnet"], "can't take images of 3 x 32 x 32"),
    "excludes what is not there": (
        ["train", "pretrain.exclude=[cnov1]"],
        "pretrain.exclude: no layer is called 'cnov1'",
    ),
    "a factor of no layer": (
        ["train", "finetune.layer_lr={conv9: 0}"],
        "no layer is called 'conv9'; the network has",
    ),
    "units of no layer": (["train", "pretrain.teacher=true", "pretrain.teacher_units={conv9: 10}"], "teacher_units"),
    "vae of a part": (["train", "rule=vae", "pretrain.exclude=[conv1]"], "trains all layers at once"),
    "another optimizer's option": (
        ["train", "rule=vae", "pretrain.optimizer_options={momentum: 0.9}"],
        "pretrain.optimizer_options: ",
    ),
    "no winners": (["train", "rule=kwta", "rule.options.k=0"], "k must be at least 1"),
    "batch of one": (["train", "pretrain.batch_size=1"], "pretrain.batch_size must be at least 2"),
    "no such launcher": (["train", "-m", "hydra/launcher=nope"], "hydra/launcher=nope: no such choice"),
    "a number for a choice": (["train", "dataset=5"], "dataset can be: cifar10"),
    "an empty word": (["train", ""], "an override is key=value"),
    "a flag without its value": (["train", "--cfg"], "--cfg needs a value, one of job"),
    "an empty path": (["train", "init_from="], "init_from is empty"),
    "a list in a list": (["train", "stages=[[pretrain]]"], "stages"),
    "a factor below 0": (
        ["train", "pretrain.layer_lr={conv1: -1}"],
        "pretrain.layer_lr.conv1 must be between 0 and 1,000,000",
    ),
    "infinite": (["train", "finetune.weight_decay=inf"], "finetune.weight_decay must be at least 0"),
    "too many epochs": (["train", "pretrain.epochs=99999999999"], "pretrain.epochs must be at most"),
    "a swept root": (["train", "-m", "out=a,b"], "out can't be swept"),
    "no function": (["train", "model.name=math:pi"], "model.name=math:pi"),
    "no data set's function": (["train", "dataset.name=os:getcwd"], "dataset.name=os:getcwd"),
    "no such torchvision model": (
        ["train", "model=torchvision:vgg12", "model.width=null"],
        "torchvision has no 'vgg12'",
    ),
    "unknown rule": (["train", "rule.name=hcpa"], "rule.name: unknown 'hcpa'; use hpca, hpca_tanh"),
    "unknown response": (["train", "rule.response=sine"], "rule.response must be one of dot"),
    "unknown optimizer": (["train", "pretrain.optimizer=Adamant"], "no optimizer of torch.optim"),
    "unfit optimizer": (["train", "pretrain.optimizer=LBFGS"], "it asks for the loss again at other weights"),
    "sparse optimizer": (["train", "pretrain.optimizer=SparseAdam"], "it is for sparse gradients"),
    "unknown optimizer option": (["train", "+pretrain.optimizer_options.speed=3"], "speed"),
    "no such module": (["train", "rule.name=no_such:hpca"], "rule.name=no_such:hpca: No module named 'no_such'"),
    "unknown key below a number": (["train", "pretrain.epochs.max=3"], "unknown key pretrain.epochs.max"),
    "unknown key of a stage by its name": (["train", "extra.head.epochs=3"], "extra.head.kind must be one of"),
    "unknown key in a sweep": (["train", "-m", "lable_fraction=0.1,0.2"], "did you mean label_fraction"),
    "unknown choice in a sweep": (["train", "-m", "rule=hpca,nope"], "rule=nope: no such choice; rule can be: bcm"),
    "no choice in a sweep": (["train", "-m", "rule=hpca,null"], "rule=null: a group needs a choice"),
    "no experiment": (["train", "experiment=null"], "experiment=null: a group needs a choice; experiment can be: "),
    "a group taken away by number": (["train", "~rule=5"], "rule=5: a group needs a choice"),
    "a group added twice": (["train", "+rule=gha"], "+rule=gha: the group rule is there already; leave the + out"),
    "a swept launcher": (["train", "-m", "hydra.launcher.n_jobs=1,2"], "hydra.launcher.n_jobs can't be swept"),
    "an interval without a search": (["train", "-m", "seed=interval(0,9)"], "interval() is for a search"),
    "a flag of --cfg": (["train", "--resolve"], "--resolve is for --cfg"),
    "a sweep's configuration": (["train", "-m", "--cfg", "job"], "show one configuration; leave -m out"),
    "no folder of choices": (["train", "--config-dir", "nowhere"], "--config-dir: there is no folder nowhere"),
    "no such package": (["train", "--cfg", "job", "--package", "nothing"], "package 'nothing' not found in config"),
    "nothing to measure": (["bench"], "fasthebb bench step, layer, scale, traffic, data, run or readout"),
    "layers all excluded": (["train", 'pretrain.exclude=["*"]'], "no Conv2d or Linear layer is left"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_exit_code_2(command: Command, case: str) -> None:
    (verb, *arguments), expected = BAD_INPUT[case]
    ran = command(verb, *arguments)
    assert ran.code == 2
    assert ran.err.count("\n") == 1, ran.err
    assert ran.err.startswith("error: ")
    assert expected in ran.err


def test_a_diverging_run_names_the_layer_and_exits_with_1(command: Command) -> None:
    ran = command("pretrain", "pretrain.lr=1e9")
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    assert "layer conv" in ran.err
    assert "lower" in ran.err
    (directory,) = ran.directories("pretrain")
    assert "layer conv" in (directory / "error.txt").read_text()
    assert not (directory / "results.json").exists()


def test_a_stopped_run_is_not_called_failed_for_an_earlier_reason(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    for problem, code, failed in ((RunError("no room"), 1, True), (Interrupted("epoch 1"), 130, False)):
        monkeypatch.setattr(stage, "run_task", Mock(side_effect=problem))
        ran = command("pretrain")
        assert ran.code == code
        (directory,) = ran.directories("pretrain")
        assert (directory / "error.txt").exists() is failed


@pytest.mark.slow
def test_an_unexpected_error_is_in_its_directory_too(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "run_task", Mock(side_effect=KeyError("speed")))
    ran = command("train", "-m", "seed=0,1")
    assert ran.code == 1
    assert [(path / "error.txt").read_text() for path in ran.directories("pretrain")] == ["KeyError: 'speed'\n"] * 2


def test_a_loss_that_is_not_finite_exits_with_1(command: Command) -> None:
    ran = command("train", "rule=none", "finetune.lr=1e30")
    assert ran.code == 1
    assert ran.err.count("\n") == 1
    assert "finetune.lr" in ran.err


def test_traceback_only_when_asked_for(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTHEBB_TRACEBACK", "")  # restored after the test
    ran = command("train", "label_fraction=2", "--traceback")
    assert ran.code == 2
    assert "Traceback" in ran.err


def test_train_runs_all_stages_and_ends_with_a_table(command: Command) -> None:
    ran = command("train", "label_fraction=0.1")
    assert ran.code == 0, ran.err
    assert "top-1 %" in ran.out
    results = ran.results("evaluate")
    assert {"top1", "top5", "loss", "samples", "seconds", "images_per_second", "stage", "dataset"} <= set(results)
    assert results["labels_train"] == 100
    assert results["labels_validation"] == 0
    assert 0 <= results["top1"] <= results["top5"] <= 1
    (pretrained,) = ran.directories("pretrain")
    names = {path.name.split(".")[0] for path in pretrained.iterdir()}
    assert names == {"command", "config", "events", "filters", "fingerprint", "log", "metrics", "model", "results"}
    epochs = [json.loads(line) for line in (pretrained / "metrics.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    assert set(epochs[0]["layers"]) == {"conv1.0", "conv2.0", "conv3.0", "conv4.0", "fc5.1"}


@pytest.mark.slow
def test_verbs_are_defaults_for_stages(command: Command) -> None:
    assert command("pretrain").code == 0
    assert command("finetune").code == 0
    ran = command("evaluate")
    assert ran.code == 0
    assert [len(ran.directories(stage)) for stage in ("pretrain", "finetune", "evaluate")] == [1, 1, 1]


@pytest.mark.slow
def test_a_stage_used_twice_with_other_settings(command: Command) -> None:
    stages = ("+finetune@extra.head=frozen", "stages=[pretrain,finetune,head,evaluate]")
    ran = command("train", *stages, "extra.head.epochs=1")
    assert ran.code == 0, ran.err
    assert ran.results("head")["epochs"] == 1
    assert ran.results("finetune")["epochs"] == 2


@pytest.mark.slow
def test_a_sweep_over_label_fractions_pretrains_once(command: Command) -> None:
    ran = command("train", "-m", "label_fraction=0.05,0.1", "rule=hpca,none")
    assert ran.code == 0, ran.err
    assert len(ran.directories("pretrain")) == 1
    assert len(ran.directories("evaluate")) == 4
    again = command("train", "-m", "label_fraction=0.05,0.1", "rule=hpca,none")
    assert again.out.count("cached") == 4


@pytest.mark.slow
def test_a_sweep_pretrains_once_for_each_rule_and_seed(command: Command) -> None:
    ran = command("train", "-m", "label_fraction=0.05,0.1", "rule=hpca,gha", "seed=0,1", "pretrain.epochs=1")
    assert ran.code == 0, ran.err
    learnt = [json.loads((path / "results.json").read_text()) for path in ran.directories("pretrain")]
    assert sorted((found["rule"], found["seed"]) for found in learnt) == [
        ("gha", 0), ("gha", 1), ("hpca", 0), ("hpca", 1),
    ]  # fmt: skip
    assert len(ran.directories("finetune")) == len(ran.directories("evaluate")) == 8


@pytest.mark.slow
def test_a_sweep_whose_cells_end_in_a_probe_shows_what_was_evaluated(command: Command) -> None:
    stages = "stages=[finetune,evaluate,probe]"
    ran = command("train", "-m", "rule=none", "label_fraction=0.1", "seed=0,1", stages, "probe.layers=[conv1]")
    assert ran.code == 0, ran.err
    top1 = [100 * json.loads((path / "results.json").read_text())["top1"] for path in ran.directories("evaluate")]
    assert f"{sum(top1) / 2:.1f}" in ran.out.splitlines()[-1]  # the means over seeds


def test_a_failed_cell_is_marked_and_the_others_run(command: Command) -> None:
    ran = command("train", "-m", "label_fraction=0.001,0.1", "rule=none")
    assert ran.code == 2
    assert "1 of 2 cells failed; what they were given is wrong, as it says above" in ran.out
    assert len(ran.directories("evaluate")) == 1


@pytest.mark.slow
def test_a_single_run_and_a_sweep_cell_share_directories(command: Command) -> None:
    command("train", "label_fraction=0.1")
    ran = command("train", "-m", "label_fraction=0.1,0.2")
    assert len(ran.directories("pretrain")) == 1
    assert len(ran.directories("finetune")) == 2


@pytest.mark.slow
def test_a_sweep_over_seeds_ends_with_their_means(command: Command) -> None:
    ran = command("train", "-m", "rule=none", "seed=range(0,2)", "finetune.epochs=1")
    top1 = [100 * json.loads((path / "results.json").read_text())["top1"] for path in ran.directories("evaluate")]
    (row,) = [line for line in ran.out.splitlines() if line.startswith("none, backprop ")]
    assert f" {sum(top1) / 2:.1f} ({abs(top1[0] - top1[1]) / 2**0.5:.1f}) " in row
    assert " 1,000 " in row.replace(" 1,000 ", "", 1)  # the labels, and in one epoch as many backward passes


def test_dry_run_writes_nothing(command: Command) -> None:
    ran = command("train", "label_fraction=0.1", "--dry-run")
    assert ran.code == 0, ran.err
    assert not list(ran.runs.glob("*seed*"))
    assert "about" in ran.out
    assert "100" in ran.out


@pytest.mark.slow
def test_a_dry_run_with_force_starts_over(command: Command) -> None:
    (directory,) = command("pretrain").directories("pretrain")
    (directory / "results.json").unlink()
    (directory / "checkpoint.pt").touch()
    assert "to be resumed" in command("pretrain", "--dry-run").out
    assert "to be resumed" not in command("pretrain", "force=true", "--dry-run").out


def test_a_dry_run_of_no_epoch(command: Command) -> None:
    for rule in ("hpca", "vae"):
        ran = command("train", f"rule={rule}", "pretrain.epochs=0", "--dry-run")
        assert ran.code == 0, ran.err


@pytest.mark.slow
def test_a_dry_run_counts_labels_as_the_run_does(command: Command) -> None:
    """Of a stage that trains those that it reads itself, of one that measures all that the network has seen."""
    again = ("+pretrain@extra.again=default", "pretrain.epochs=1", "extra.again.epochs=1", "finetune.epochs=1")
    words = ("stages=[pretrain,finetune,again,evaluate]", *again, "dataset.train_samples=100", "label_fraction=0.5")
    planned, ran = command("train", *words, "--dry-run"), command("train", *words)
    assert ran.code == 0, ran.err
    counts = {stage: ran.results(stage)["labels_train"] for stage in ("pretrain", "finetune", "again", "evaluate")}
    assert counts == {"pretrain": 0, "finetune": 50, "again": 0, "evaluate": 50}
    shown = {line.split()[0]: line.split()[3] for line in planned.out.splitlines() if line.split()[0] in counts}
    assert shown == {stage: str(count) for stage, count in counts.items()}


@pytest.mark.slow
def test_a_dry_run_submits_nothing_and_leaves_searches_alone(command: Command) -> None:
    launcher = ("hydra/launcher=slurm_gpu", "hydra.launcher.partition=none")
    ran = command("train", "-m", *launcher, "seed=0,1", "--dry-run")
    assert ran.code == 0, ran.err
    assert ran.out.count("new") >= 6
    assert not ran.runs.exists()
    ran = command("train", "-m", "hydra/sweeper=optuna", "pretrain.lr=interval(0.01,0.3)", "--dry-run")
    assert ran.code == 2
    assert ran.err == "error: hydra/sweeper: a search makes its cells as it goes; --dry-run needs a sweep without one\n"


def test_a_dry_run_times_every_layers_turn_and_counts_a_probes_labels(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[str | None] = []
    monkeypatch.setattr(HebbianLearner, "learn_only", lambda learner, name: turns.append(name))
    words = ("stages=[pretrain,probe]", "pretrain.layer_by_layer=true", "pretrain.batch_size=100")
    ran = command("train", *words, "label_fraction=0.1", "--dry-run")
    assert ran.code == 0, ran.err
    assert set(turns) == {"conv1.0", "conv2.0", "conv3.0", "conv4.0", "fc5.1"}
    (line,) = (line for line in ran.out.splitlines() if line.startswith("probe"))
    assert line.split()[2:4] == ["597", "100"]  # images of the pass, labels


@pytest.mark.slow
@pytest.mark.parametrize("words", [("train", "-m"), ("train", "-m", "--dry-run"), ("cells train",)])
def test_a_key_that_only_some_cells_have_is_refused_with_what_to_do(command: Command, words: tuple[str, ...]) -> None:
    sweep = ("finetune=few_labels,closed_form,frozen", "finetune.epochs=1", "dataset=digits")
    ran = command(words[0], *words[1:], *sweep, small=False)
    assert ran.code == 2
    assert len(ran.err.splitlines()) == 1
    assert ran.err.startswith(
        "error: finetune.epochs: cells with finetune=closed_form do not have this key, and accept: "
    )
    assert "sweep finetune=few_labels,frozen by a command of its own" in ran.err
    ran = command(words[0], *words[1:], "finetune=closed_form,few_labels", "finetune.nothing=1", small=False)
    assert ran.code == 2
    assert "unknown key finetune.nothing" in ran.err


@pytest.mark.slow
def test_experiments_give_each_cell_the_keys_of_its_choice(command: Command, tmp_path: Path) -> None:
    (tmp_path / "conf/experiment").mkdir(parents=True)
    for name, key in (("closed_form", "components: 7"), ("few_labels", "epochs: 1")):
        text = f"# @package _global_\ndefaults:\n  - override /finetune: {name}\nfinetune:\n  {key}\n"
        (tmp_path / f"conf/experiment/{name}.yaml").write_text(text)
    words = ("experiment=closed_form,few_labels", "dataset=digits", "model.width=0.03", "gpu=cpu", "--dry-run")
    ran = command("train", "-m", "--config-dir", str(tmp_path / "conf"), *words, small=False)
    assert ran.code == 0, ran.err


@pytest.mark.slow
def test_mappings_take_new_keys_without_a_plus_and_sweep_under_their_own_name(command: Command) -> None:
    ran = command("train", "-m", "rule.options.damping=0.1,0.3", "finetune.layer_lr={conv1: 0}", "label_fraction=0.1")
    assert ran.code == 0, ran.err
    assert len(ran.directories("pretrain")) == 2
    assert "\nrule.options.damping " in ran.out
    assert "++" not in ran.out


def test_compiling_without_a_compiler_runs_eager_and_says_so(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(torch, "compile", Mock(side_effect=AssertionError("compiled")))
    ran = command("pretrain", "gpu.compile=true", "pretrain.epochs=1")
    assert ran.code == 0, ran.err
    assert "eager as gpu.compile finds no C++ compiler" in ran.out + ran.err


def test_help_lists_every_choice_with_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--help"]) == 0
    text = capsys.readouterr().out
    for path in conf_directory().glob("*/*.yaml"):
        assert path.read_text().removeprefix("# @package _global_\n").startswith("# "), path
        assert path.stem in text
    assert "fasthebb train dataset=imagenet rule=hpca" in text


def test_verbs_that_all_processes_run_are_those_with_stages() -> None:
    assert {name for name, verb in VERBS.items() if verb.by_all} == STAGES_OF_VERB.keys()


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_its_function_and_its_line_of_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module, _, function = VERBS[name].function.partition(":")
    assert callable(getattr(import_module(module), function))
    assert cli.run([]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith(f"  {name} "))
    assert VERBS[name].line.split()[0] in line


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"fasthebb {fasthebb_cli.__version__}\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("fasthebb tr", "train"),
        ("fasthebb train rule=", "rule=hpca rule=hpca_adaptive"),
        ("fasthebb train label_", "label_fraction="),
        ("fasthebb train pretrain.ep", "pretrain.epochs="),
    ],
)
def test_completion(
    line: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    GlobalHydra.instance().clear()
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert cli.run(["-sc", "query=bash"]) == 0
    assert expected in capsys.readouterr().out


@pytest.mark.slow
def test_completion_by_a_process_of_its_own_as_a_shell_asks_for_it() -> None:
    environment = os.environ | {"COMP_LINE": "fasthebb train rule=", "COMP_POINT": "20"}
    words = [sys.executable, "-m", "fasthebb_cli", "-sc", "query=bash"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "rule=hpca rule=hpca_adaptive" in done.stdout


def test_runs_as_a_module_from_any_directory(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fasthebb_cli", "train", "--cfg", "job"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "label_fraction: 1.0" in done.stdout
    assert not list(tmp_path.iterdir())


def test_an_unreadable_image_is_named_in_one_line(command: Command, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    class_folders(root, {"cat": 30, "dog": 30})
    (root / "cat" / "000.png").write_bytes(b"not an image")
    ran = command("train", "dataset=image_folder", f"dataset.root={root}", "label_fraction=0.5")
    assert ran.code == 2
    assert ran.err.count("\n") == 1
    assert str(root / "cat" / "000.png") in ran.err


def test_a_folder_of_photographs_end_to_end(command: Command, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    class_folders(root, {"cat": 30, "dog": 30})
    ran = command("train", "dataset=image_folder", f"dataset.root={root}", "label_fraction=0.5")
    assert ran.code == 0, ran.err
    assert ran.results("finetune")["labels_train"] == 18


@pytest.mark.slow
def test_a_sweep_in_joblibs_processes(tmp_path: Path) -> None:
    words = ["train", "-m", *SMALL, "label_fraction=0.1,0.2,0.001", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = subprocess.run(
        [sys.executable, "-m", "fasthebb_cli", *words, f"out={tmp_path}"], capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert len(list(tmp_path.glob("*pretrain*/results.json"))) == 1
    assert len(list(tmp_path.glob("*evaluate*/results.json"))) == 2
    assert done.stdout.count("failed") == 2  # the row, and the count below the table


def side_by_side(words: list[str], runs: Path, begun: int) -> "subprocess.Popen[str]":
    """A sweep of which joblib runs two cells at once, after so many of its pre-trainings have had an epoch."""
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    sweep = subprocess.Popen(
        [sys.executable, "-m", "fasthebb_cli", "train", "-m", *words, *launcher],
        env=os.environ | {"COLUMNS": "300"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + PATIENCE
    while len(list(runs.glob("*pretrain*/metrics.jsonl"))) < begun:
        assert time.monotonic() < until
        assert sweep.poll() is None
        time.sleep(0.1)
    return sweep


@pytest.mark.slow
def test_a_killed_process_of_joblibs_ends_a_sweep_with_its_table(command: Command) -> None:
    """The first cell is there from before; the others run until they are killed."""
    ran = command("train", "pretrain.epochs=1")
    assert ran.code == 0, ran.err
    words = [*SMALL, f"out={ran.runs}"]
    sweep = side_by_side([*words, "pretrain.epochs=1,2000,2001"], ran.runs, 3)
    holders = [holder_of(path) for path in ran.runs.glob("*pretrain*")]
    os.kill(next(int(holder.split()[-1]) for holder in holders if holder), signal.SIGKILL)
    out, errors = sweep.communicate(timeout=PATIENCE)
    assert sweep.returncode == 1
    assert "hydra/launcher=joblib: a process that ran cells was killed" in errors
    assert "Traceback" not in errors
    assert "cached" in out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_in_joblibs_processes_that_is_stopped_leaves_none_of_them(
    tmp_path: Path, number: signal.Signals
) -> None:
    """One process saves long after the other has ended."""
    words = [*SMALL, f"out={tmp_path / 'runs'}", "stages=[pretrain]"]
    sweep = side_by_side([*words, "pretrain.epochs=2000", "seed=0,1"], tmp_path / "runs", 2)
    runs = sorted(tmp_path.glob("runs/*pretrain*"))
    late = int(str(holder_of(runs[1])).split()[-1])
    os.kill(late, signal.SIGSTOP)
    sweep.send_signal(number)
    until = time.monotonic() + PATIENCE
    while holder_of(runs[0]):
        assert time.monotonic() < until
        time.sleep(0.1)
    time.sleep(1)  # joblib's pool notices that a process has ended
    os.kill(late, signal.SIGCONT)
    _, errors = sweep.communicate(timeout=PATIENCE)  # its processes hold the pipe: it ends with the last of them
    assert sweep.returncode == 130, errors
    assert "Traceback" not in errors
    assert "Warning" not in errors
    assert "stopped; the same command goes on" in errors
    assert errors.count("stopped and saved at epoch") == 2
    assert len(list(tmp_path.glob("runs/*/checkpoint.pt"))) == 2
    assert not any(map(holder_of, tmp_path.glob("runs/*pretrain*")))


@pytest.mark.slow
def test_a_cells_overrides_are_not_read_as_markup(command: Command) -> None:
    ran = command("train", "-m", "rule=none", "label_fraction=0.1", "stages=[finetune],[finetune,evaluate]")
    assert ran.code == 0, ran.err
    assert "[finetune,evaluate]" in ran.out


def test_a_last_batch_of_one_image_is_trained_on(command: Command) -> None:
    ran = command("train", "label_fraction=0.065", "dataset.train_samples=961")
    assert ran.code == 0, ran.err


@pytest.mark.slow
def test_an_evaluation_killed_before_its_results_are_written_is_done_again(command: Command) -> None:
    ran = command("train", "label_fraction=0.1")
    (directory,) = ran.directories("evaluate")
    before = ran.results("evaluate")
    (directory / "results.json").unlink()
    again = command("train", "label_fraction=0.1")
    assert again.code == 0, again.err
    assert again.results("evaluate")["top1"] == before["top1"]


@pytest.mark.slow
def test_the_same_stage_under_another_name_is_another_stage(command: Command) -> None:
    command("train", "label_fraction=0.1")
    stages = ("+finetune@extra.again=backprop", "extra.again.epochs=2", "stages=[pretrain,again,evaluate]")
    ran = command("train", "label_fraction=0.1", *stages)
    assert ran.code == 0, ran.err
    assert len(ran.directories("evaluate")) == 2


def test_out_on_a_file_is_one_line(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = command("pretrain", f"out={tmp_path / 'file'}/runs")
    assert ran.code == 2
    assert ran.err.count("\n") == 1


def test_imagenet_brings_its_network(capsys: pytest.CaptureFixture[str]) -> None:
    for words, network in (([], "conv10"), (["model=conv6"], "conv6")):
        GlobalHydra.instance().clear()
        assert cli.run(["train", "dataset=imagenet", "rule=hpca", *words, "--cfg", "job"]) == 0
        assert f"model:\n  name: {network}" in capsys.readouterr().out


def test_what_stops_a_later_stage_is_found_before_anything_runs(command: Command) -> None:
    ran = command("train", "label_fraction=0.005")
    assert ran.code == 2
    assert not ran.directories("pretrain")


def test_a_link_in_a_circle_is_named(command: Command, tmp_path: Path) -> None:
    class_folders(tmp_path / "photos", {"cat": 10, "dog": 10})
    (tmp_path / "photos" / "cat" / "up").symlink_to(tmp_path / "photos" / "cat")
    ran = command("train", "dataset=image_folder", f"dataset.root={tmp_path / 'photos'}", "label_fraction=0.5")
    assert ran.code == 2
    assert "cat/up: links to a folder that is read already" in ran.err


@pytest.mark.slow
def test_a_reader_that_stops_early_does_not_stop_the_run(tmp_path: Path) -> None:
    words = " ".join([*SMALL, "label_fraction=0.1", f"out={tmp_path}"])
    line = f"{sys.executable} -m fasthebb_cli train {words} | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*evaluate*/results.json"))) == 1


def test_results_of_other_settings_are_not_reused(command: Command) -> None:
    ran = command("pretrain")
    path = ran.directories("pretrain")[0] / "results.json"
    path.write_text(path.read_text().replace(ran.results("pretrain")["fingerprint"], "0" * 32))
    again = command("pretrain")
    assert again.code == 2
    assert str(path) in again.err


@pytest.mark.slow
def test_weights_keep_the_number_of_their_labels(command: Command) -> None:
    (origin,) = command("train", "label_fraction=0.1").directories("finetune")
    ran = command("evaluate", f"init_from={origin}")
    results = [json.loads((path / "results.json").read_text()) for path in ran.directories("evaluate")]
    assert [result["labels_train"] for result in results] == [100, 100]
    assert results[0]["top1"] == results[1]["top1"]


def test_a_folder_of_ones_own_adds_choices(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site" / "finetune").mkdir(parents=True)
    (tmp_path / "site" / "finetune" / "brief.yaml").write_text("defaults:\n  - backprop\n  - _self_\nlr: 0.02\n")
    monkeypatch.setenv("FASTHEBB_CONF", str(tmp_path / "site"))
    ran = command("train", "rule=none", "finetune=brief", "label_fraction=0.1")
    assert ran.code == 0, ran.err
    assert "lr: 0.02" in (ran.directories("finetune")[0] / "config.yaml").read_text()


def test_a_faulty_file_of_ones_own_is_one_line(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site of mine"
    for name, text in {"launcher": "defaults: [nowhere]", "lists": "lr: [0.1"}.items():
        folder = site / ("hydra/launcher" if name == "launcher" else "finetune")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(f"{text}\n")
    monkeypatch.setenv("FASTHEBB_CONF", str(site))
    for word, expected in {
        "hydra/launcher=launcher": "hydra/launcher=nowhere: no such choice; hydra/launcher can be: launcher, local, ",
        "finetune=lists": "lists.yaml",
        "finetune=nope": "finetune can be: backprop, closed_form, few_labels, frozen, gentle, hebbian, lists, paper",
    }.items():
        ran = command("train", "-m", word, "seed=0,1")
        assert ran.code == 2
        assert ran.err.count("\n") == 1, ran.err
        assert expected in ran.err


def test_a_folder_of_choices_named_by_a_flag(command: Command, tmp_path: Path) -> None:
    (tmp_path / "choices" / "finetune").mkdir(parents=True)
    (tmp_path / "choices" / "finetune" / "brief.yaml").write_text("defaults: [backprop, _self_]\nlr: 0.02\n")
    ran = command("train", "finetune=brief", "--config-dir", str(tmp_path / "choices"), "--cfg", "job")
    assert ran.code == 0, ran.err
    assert "lr: 0.02" in ran.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("swept", "code", "rules"),
    [("finetune=backprop,frozen", 0, ["hpca", "hpca"]), ("rule=none,hpca", 2, ["none"])],
)
def test_keys_of_swept_choices_may_be_set(command: Command, swept: str, code: int, rules: list[str]) -> None:
    """Though the default of the group, which no cell has, lacks them; a cell that lacks them says so."""
    words = [word for word in SMALL if word != "finetune=backprop"]
    ran = command("train", "-m", *words, swept, "label_fraction=0.1", small=False)
    assert ran.code == code, ran.err
    assert [path.name.split("-")[3] for path in ran.directories("evaluate")] == rules
    assert ("unknown key finetune.epochs" in ran.err) is (code == 2)


def test_a_rule_brings_its_activation(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["train", "rule=hpca_tanh", "--cfg", "job", "--resolve"]) == 0
    assert "  activation: tanh\n" in capsys.readouterr().out.split("model:")[1]


@pytest.mark.parametrize(("name", "shown"), [("a:fire:b", "a:fire:b"), ("a\x1b[31mb", r"a\x1b[31mb")])
def test_names_are_shown_without_markup_or_control_characters(command: Command, name: str, shown: str) -> None:
    ran = command("pretrain", "dataset=image_folder", f"dataset.root='{name}'")
    assert ran.code == 2
    assert shown in ran.err
    assert ran.err.count("\n") == 1
    assert printable("two\nlines\x7f") == r"two\nlines\x7f"


@pytest.mark.parametrize(("verb", "key"), [("data", "archive=null"), ("bench", "repeats=")])
def test_help_of_a_verb_with_keys_of_its_own(command: Callable[..., Ran], verb: str, key: str) -> None:
    page = command(verb, "--help", small=False)
    assert page.code == 0
    assert key in page.out
    assert "examples" not in page.out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_is_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([name, "--help"]) == 0
    page = capsys.readouterr().out
    usage = COMMANDS[name]
    assert page.startswith(f"fasthebb {name} {usage.paths}")
    assert len(page.splitlines()) < 20
    for key, setting in usage.keys.items():
        assert f"{key}={setting.default}" in page
    words = usage.example.split()
    assert words[:2] == ["fasthebb", name]
    assert usage.example in page
    keys = [word.partition("=")[0] for word in words if "=" in word]
    assert set(keys) <= set(usage.keys)
    assert usage.least <= len(words) - 2 - len(keys) <= usage.most
