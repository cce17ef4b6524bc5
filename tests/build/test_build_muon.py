"""Two optimizers that behave as one."""

import copy

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from sample_data.build import model_shapes
from sample_data.build.muon import MuonAdamW


@pytest.fixture
def model():
    untrained = model_shapes.untrained("toy")
    untrained.codec_model = None
    return untrained


def train(model, optimizer, steps: int = 2) -> None:
    """Run some steps with random gradients, the same in each call."""
    for step in range(steps):
        torch.manual_seed(step)
        for weight in model.parameters():
            weight.grad = torch.randn_like(weight)
        optimizer.step()


def test_each_weight_is_in_one_of_the_two(model):
    """Mistake: an embedding that is orthogonalized, a weight that is not trained, or one that is updated twice."""
    muon, adamw = MuonAdamW(model, 0.01, 0.1).optimizers
    sets = [{id(weight) for group in optimizer.param_groups for weight in group["params"]} for optimizer in (muon, adamw)]
    assert not sets[0] & sets[1] and sets[0] | sets[1] == {id(weight) for weight in model.parameters()}
    names = {name for name, weight in model.named_parameters() if id(weight) in sets[0]}
    # seven matrices in each of the two layers of backbone and depth decoder
    assert len(names) == 28 and all(name.endswith("proj.weight") for name in names)


def test_a_schedule_changes_both(model):
    """Mistake: the schedule changes copies of the groups, and the learning rate stays constant."""
    optimizer = MuonAdamW(model, 0.01, 0.0)
    schedule = LambdaLR(optimizer, lambda step: float(step == 0))
    train(model, optimizer, 1)
    schedule.step()
    before = [weight.detach().clone() for weight in model.parameters()]
    train(model, optimizer)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters()))


def test_the_state_is_saved_and_loaded(model):
    """Mistake: a resumed training starts without momentum, or its schedule changes groups that are no longer used."""
    optimizer = MuonAdamW(model, 0.01, 0.1)
    train(model, optimizer)
    resumed_model = model_shapes.untrained("toy", 1)
    resumed_model.codec_model = None
    resumed_model.load_state_dict(model.state_dict())
    resumed = MuonAdamW(resumed_model, 0.5, 0.1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch would share the tensors
    assert {group["lr"] for part in resumed.optimizers for group in part.param_groups} == {0.01}
    for trained_model, trained_optimizer in ((model, optimizer), (resumed_model, resumed)):
        for group in trained_optimizer.param_groups:
            group["lr"] = 0.02
        train(trained_model, trained_optimizer)
    assert all(torch.equal(weight, resumed_weight)
               for weight, resumed_weight in zip(model.parameters(), resumed_model.parameters()))
