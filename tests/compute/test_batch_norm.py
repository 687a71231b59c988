"""Replacing batch norm by one over several processes. test_parallel compares its numbers."""

import pytest
import torch
from torch import Tensor, nn

from fasthebb.nets.networks import RelativeBatchNorm2d
from fasthebb_cli.compute import processes
from fasthebb_cli.compute.batch_norm import SharedBatchNorm, share_batch_norm
from fasthebb_cli.errors import InputError


class Doubled(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.fixture
def _two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "count", lambda: 2)


@pytest.mark.usefixtures("_two")
def test_shared_batch_norm_takes_over_parameters_buffers_and_mode() -> None:
    twice, relative = nn.BatchNorm2d(3, eps=0.1, momentum=0.3), RelativeBatchNorm2d(3)
    network = nn.Sequential(twice, nn.Sequential(nn.ReLU(), twice), relative.eval())
    weight, state = twice.weight, network.state_dict()
    images = torch.randn(4, 3, 5, 5)
    expected = network.eval()(images)
    network[0].train()
    assert share_batch_norm(network) is network
    made, relative_made = network.get_submodule("0"), network.get_submodule("2")
    assert isinstance(made, SharedBatchNorm)
    assert made is network.get_submodule("1.1")
    assert made.weight is weight
    assert (made.eps, made.momentum, made.training, relative_made.training) == (0.1, 0.3, True, False)
    found = network.state_dict()
    assert list(found) == list(state)
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert torch.equal(network.eval()(images), expected)
    share_batch_norm(network)  # a second call replaces nothing
    assert network.get_submodule("2") is relative_made


@pytest.mark.usefixtures("_two")
def test_a_batch_norm_with_a_forward_pass_of_its_own_is_refused() -> None:
    with pytest.raises(InputError, match="Doubled is a batch norm with a forward pass of its own"):
        share_batch_norm(nn.Sequential(Doubled(3)))


def test_a_single_process_replaces_nothing() -> None:
    network = nn.Sequential(Doubled(3), nn.BatchNorm1d(3))
    assert [type(module) for module in share_batch_norm(network).children()] == [Doubled, nn.BatchNorm1d]
