"""Two optimizers that behave as one."""

import copy

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from sample_data.build import model_shapes
from sample_data.build.muon import MuonAdamW


@pytest.fixture
def model():
    made = model_shapes.untrained("toy")
    made.codec_model = None
    return made


def learn(model, optimizer, steps: int = 2) -> None:
    for number in range(steps):
        torch.manual_seed(number)
        for weight in model.parameters():
            weight.grad = torch.randn_like(weight)
        optimizer.step()


def test_every_weight_is_in_one_of_the_two(model):
    """Mistake: a table orthogonalized as if it were a layer, a weight that nobody moves, or one moved twice."""
    muon, adam = MuonAdamW(model, 0.01, 0.1).parts
    sets = [{id(weight) for group in part.param_groups for weight in group["params"]} for part in (muon, adam)]
    assert not sets[0] & sets[1] and sets[0] | sets[1] == {id(weight) for weight in model.parameters()}
    names = {name for name, weight in model.named_parameters() if id(weight) in sets[0]}
    # seven matrices in each of two layers of both stacks
    assert len(names) == 28 and all(name.endswith("proj.weight") for name in names)


def test_a_schedule_reaches_both(model):
    """Mistake: the schedule moves copies of the groups, and the learning rate never falls."""
    optimizer = MuonAdamW(model, 0.01, 0.0)
    schedule = LambdaLR(optimizer, lambda step: float(step == 0))
    learn(model, optimizer, 1)
    schedule.step()
    before = [weight.detach().clone() for weight in model.parameters()]
    learn(model, optimizer)
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters()))


def test_what_was_learnt_about_the_gradients_is_kept(model):
    """Mistake: a resumed training begins without momentum, or its schedule holds groups that are no longer used."""
    optimizer = MuonAdamW(model, 0.01, 0.1)
    learn(model, optimizer)
    other = model_shapes.untrained("toy", 1)
    other.codec_model = None
    other.load_state_dict(model.state_dict())
    resumed = MuonAdamW(other, 0.5, 0.1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch takes the very tensors
    assert {group["lr"] for part in resumed.parts for group in part.param_groups} == {0.01}
    for one, same in ((model, optimizer), (other, resumed)):
        for group in same.param_groups:
            group["lr"] = 0.02
        learn(one, same)
    assert all(torch.equal(one, same) for one, same in zip(model.parameters(), other.parameters()))
