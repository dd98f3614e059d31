import pytest
import torch

from acmix_mm.checkpoints import backbone_part, unwrap

ITSELF: dict = {}
ITSELF['state_dict'] = ITSELF
CIRCLE: dict = {'state_dict': {'model': {}}}
CIRCLE['state_dict']['model'] = CIRCLE
STATE = {'a.weight': torch.ones(1), 'b': torch.zeros(2)}


@pytest.mark.parametrize(
    'checkpoint',
    [
        STATE,
        {'state_dict': STATE, 'meta': {'epoch': 3}},
        {'model': STATE, 'optimizer': {}, 'epoch': 300},
        {'model': {'state_dict': STATE}},
        {'model': {f'module.{k}': v for k, v in STATE.items()}},
        {'state_dict': {f'module._orig_mod.{k}': v for k, v in STATE.items()}},
    ],
)
def test_finds_the_state_dict(checkpoint):
    assert unwrap(checkpoint) == STATE


def test_small_expanded_tensors_are_sound():
    state_dict = {'a': torch.ones(1).expand(1000), 'b': torch.empty(10**6, 10**6, device='meta')}
    assert unwrap(state_dict) == state_dict


def test_a_layer_called_module_is_no_wrapper():
    state_dict = {'module.a': torch.ones(1), 'b': torch.ones(1)}
    assert unwrap(state_dict) == state_dict


@pytest.mark.parametrize(
    ('checkpoint', 'says'),
    [
        ({}, 'it contains nothing'),
        ([1], 'it contains a list'),
        (
            {'epoch': 3, 'lr': 0.1},
            "entry 'epoch' is a int, not a tensor; it contains 'epoch', 'lr'",
        ),
        ({'model': STATE | {'config': 'x'}}, "entry 'config' is a str, not a tensor"),
        ({'model': {5: torch.ones(1)}}, 'entry 5 has a int as its name'),
        ({None: torch.ones(1)}, 'entry None has a NoneType as its name'),
        (ITSELF, 'it contains itself'),
        (CIRCLE, 'it contains itself'),
        (
            {'a': torch.ones(1).expand(10**12)},
            "entry 'a' claims 3725 GiB, which the file does not contain",
        ),
        ({str(i): i for i in range(9)}, "it contains '0', '1', '2', '3', '4', ...$"),
    ],
)
def test_planted_content(checkpoint, says):
    with pytest.raises(ValueError, match=f'no state dict in this checkpoint: .*{says}'):
        unwrap(checkpoint)


def test_errors_name_the_file():
    with pytest.raises(ValueError, match=r'no state dict in in\.pth: it contains nothing'):
        unwrap({}, 'in.pth')


def test_backbone_part():
    assert backbone_part(STATE) == (STATE, [])
    model = {f'backbone.{k}': v for k, v in STATE.items()} | {'head.w': torch.ones(1)}
    assert backbone_part(model) == (STATE, ['head.w'])
