import torch

from acmix_mm.checkpoints.released import PATHS, SLIDING_WINDOW, accept_released_names


def test_a_layer_within_a_network():
    state_dict = {f'a.conv{i}.bias': torch.full((2,), float(i)) for i in (3, 1, 2)}
    state_dict |= {
        'b.conv1.bias': torch.ones(1),
        'a.rate1': torch.ones(()),
        'a.qkv.x': torch.ones(1),
    }
    accept_released_names(state_dict, 'a.', SLIDING_WINDOW)
    assert state_dict.keys() == {'a.qkv.bias', 'a.mix.alpha', 'b.conv1.bias', 'a.qkv.x'}
    assert state_dict['a.qkv.bias'].tolist() == [1, 1, 2, 2, 3, 3]
    assert state_dict['a.mix.alpha'].shape == (1,)


def test_our_names_stay():
    state_dict = {'mix.alpha': torch.zeros(1)}
    accept_released_names(state_dict, '', PATHS)
    assert state_dict == {'mix.alpha': torch.zeros(1)}
