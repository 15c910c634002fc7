"""The GhostNets of other libraries, for test_import_weights.py. A process of its own: Triton does not come up beside TensorFlow.

    python tests/tools/their_models.py make MODEL SEED STATE [IMAGES.npy LOGITS.npy]
    python tests/tools/their_models.py same MODEL STATE BACK

MODEL is a name in timm, or imgclsmob and its width; STATE and BACK are files of torch.save, or in safetensors by their ending.
"""
import sys

import numpy as np
import torch
from safetensors.torch import load_file, save_file


def create(model):
    if model.startswith('imgclsmob'):
        from pytorchcv.models.ghostnet import get_ghostnet
        return get_ghostnet(width_scale=float(model.split()[1]))
    import timm
    return timm.create_model(model)


def make(model, seed, path, images=None, logits=None):
    """Saves a model as its library initialises it, but with random BN statistics, and its logits for RGB images (N, H, W, 3)."""
    torch.manual_seed(int(seed))
    model = create(model).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.num_batches_tracked.fill_(int(seed) + 1)
        if images is not None:
            np.save(logits, model(torch.from_numpy(np.load(images).transpose(0, 3, 1, 2).copy())).numpy())
    if path.endswith('.safetensors'):
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)


def load(path):
    """The state dict in a file."""
    return load_file(path) if path.endswith('.safetensors') else torch.load(path, weights_only=True)


def same(model, path, back):
    """Fails if the state dict in `back` is not exactly the one in `path`, or the model does not take it."""
    state, expected = load(back), load(path)
    assert set(state) == set(expected)
    for name, value in expected.items():
        assert state[name].dtype == value.dtype and torch.equal(state[name], value), name
    create(model).load_state_dict(state)


if __name__ == '__main__':
    {'make': make, 'same': same}[sys.argv[1]](*sys.argv[2:])
