"""Backprop on several processes, or in micro-batches: the same steps as on the whole batch, uneven batches included."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from fasthebb.micro_batch import InMicroBatches
from fasthebb.nets.autoencoder import VariationalAutoencoder, loss_terms
from fasthebb.nets.networks import conv6
from fasthebb_cli.compute import processes
from fasthebb_cli.compute.batch_norm import share_batch_norm
from fasthebb_cli.compute.gradients import micro_batched, summed_gradients
from fasthebb_cli.errors import InputError
from fasthebb_cli.stages.scores import Confusion
from fasthebb_cli.stages.totals import Totals
from tests.conftest import Ran
from tests.fasthebb.test_many import same
from tests.many import SIZES, sums_told, together

BATCHES = (7, 5, 3)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return conv6(channels=2, size=24, classes=3, width=0.05, norm="relative", dropout=0).double()


def trained(micro_batch: int | None = None) -> dict[str, Tensor]:
    """The network's state after steps on batches of several lengths, and its totals."""
    made = share_batch_norm(network())
    run = micro_batched(made, micro_batch)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.02, momentum=0.9)
    totals, confusion = Totals(torch.device("cpu")), Confusion(3)
    for step in range(6):
        total = BATCHES[step % 3]
        part = processes.part_of(total)
        images = torch.randn(total, 2, 24, 24, generator=torch.Generator().manual_seed(step)).double()[part]
        labels = (torch.arange(total) % 3)[part]
        scores = run(images)
        loss = F.cross_entropy(scores, labels, reduction="sum") / total
        optimizer.zero_grad()
        with summed_gradients(optimizer):
            loss.backward()
        optimizer.step()
        totals.add(loss=loss.detach() * total, samples=len(labels))
        confusion.add(labels, labels)
    state = dict(made.state_dict())
    state["loss"] = torch.tensor(totals.means()["loss"], dtype=torch.float64)
    return state | {"confusion": confusion.total()}


def autoencoded() -> dict[str, Tensor]:
    """An autoencoder's state after steps on batches of several lengths."""
    made = VariationalAutoencoder(network().float(), channels=2, size=24, latents=4).double()
    autoencoder = share_batch_norm(made)
    optimizer = torch.optim.SGD(autoencoder.parameters(), lr=1e-4)
    for step in range(6):
        total = BATCHES[step % 3]
        part = processes.part_of(total)
        draws = torch.Generator().manual_seed(step)
        images = torch.randn(total, 2, 24, 24, generator=draws).double()[part]
        noise = torch.randn(total, 4, generator=draws).double()[part]
        error, divergence = loss_terms(images, *autoencoder(images, noise))
        optimizer.zero_grad()
        with summed_gradients(optimizer):
            ((error + divergence) * (len(images) / total)).backward()
        optimizer.step()
    return dict(autoencoder.state_dict())


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("size", SIZES)
def test_processes_train_an_autoencoder_like_one(size: int) -> None:
    for found in together("tests.compute.test_parallel:autoencoded", size):
        same(found, autoencoded(), 1e-6)


def trained_in_micro_batches() -> dict[str, Tensor]:
    return trained(micro_batch=2)


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("function", ["trained", "trained_in_micro_batches"])
def test_processes_train_like_one(size: int, function: str) -> None:
    for found in together(f"tests.compute.test_parallel:{function}", size):
        same(found, trained(), 1e-8)


def backward_pass() -> list[str]:
    """The events of a step, in order."""
    made = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    events: list[str] = []
    for name, layer in made.named_children():
        layer.register_forward_hook(
            lambda _, x, output, name=name: output.register_hook(lambda _: events.append(f"back at {name}")) and None
        )
    sums_told(events)
    with summed_gradients(optimizer):
        made(torch.ones(2, 4)).sum().backward()
    return events


@pytest.mark.slow
@pytest.mark.xdist_group("processes")
def test_gradients_are_sent_while_the_backward_pass_goes_on() -> None:
    """DistributedDataParallel would put them into one buffer here, and send it at the end."""
    expected = ["back at 1", "send 3", "send 15", "back at 0", "send 5", "send 20", *["wait"] * 4]
    assert together("tests.compute.test_parallel:backward_pass", 2) == [expected] * 2


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_micro_batches_train_like_the_whole_batch(micro_batch: int) -> None:
    same(trained(micro_batch), trained(), 1e-8)


def test_micro_batches_keep_fewer_activations() -> None:
    """Most of what autograd would keep of a large batch is computed again in the backward pass."""
    made = network()
    images = torch.randn(32, 2, 24, 24).double()
    assert kept(InMicroBatches(made, 4), images) < 0.7 * kept(made, images)


def kept(module: nn.Module, images: Tensor) -> int:
    """Bytes that autograd keeps for the backward pass."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        held.append(tensor)
        return tensor

    held: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(images)
    return sum(sizes.values())


def test_a_network_that_is_no_sequence_is_refused() -> None:
    network = nn.Sequential(models.resnet18(), nn.Linear(1000, 3))
    with pytest.raises(InputError, match=r"gpu.micro_batch=2: 0 is no plain sequence .* batch norm"):
        micro_batched(network, 2)


@pytest.mark.slow
def test_micro_batch_changes_memory_only(command: Callable[..., Ran], tmp_path: Path) -> None:
    """The same directories and, to rounding, the same numbers, in pre-training and fine-tuning."""
    settings = ("model.dropout=0", "label_fraction=0.2", "stages=[pretrain,finetune]")
    whole = command("train", *settings, f"out={tmp_path / 'whole'}")
    parts = command("train", *settings, f"out={tmp_path / 'parts'}", "gpu.micro_batch=24")
    assert (whole.code, parts.code) == (0, 0), parts.err
    for stage, tolerance in (("pretrain", 1e-4), ("finetune", 0.05)):
        (one,), (other,) = (list(tmp_path.glob(f"{name}/*-{stage}-*")) for name in ("whole", "parts"))
        assert one.name == other.name
        found, wanted = load_file(other / "model.safetensors"), load_file(one / "model.safetensors")
        assert any(not torch.equal(found[name], value) for name, value in wanted.items()), "it ran in one piece"
        same(found, wanted, tolerance)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["gpu.micro_batch=0"], "gpu.micro_batch"),
        (["gpu.micro_batch=8", "gpu.compile=true"], "leave one out"),
        (["gpu.micro_batch=8", "rule=vae"], "rule=vae sees its batches whole"),
        (
            ["gpu.micro_batch=8", "finetune.by_rule=[conv1]", "pretrain.epochs=0"],
            "finetune.by_rule sees its batches whole",
        ),
        (["gpu.micro_batch=8", "model=torchvision:resnet18"], "gpu.micro_batch=8: features is no plain sequence"),
    ],
)
def test_bad_micro_batches(command: Callable[..., Ran], words: list[str], expected: str) -> None:
    ran = command("train", *words)
    assert ran.code == 2
    assert expected in ran.err


def test_a_module_may_stand_twice() -> None:
    activation = nn.Tanh()
    twice = nn.Sequential(nn.Linear(4, 4), activation, nn.Linear(4, 4), activation)
    images = torch.randn(6, 4)
    torch.testing.assert_close(InMicroBatches(twice, 2)(images), twice(images))
