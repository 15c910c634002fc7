"""The GhostNets of other libraries, for test_import_weights.py. A process of its own: Triton does not come up beside TensorFlow.

    python tests/their_models.py make MODEL SEED STATE.pth [IMAGES.npy LOGITS.npy]
    python tests/their_models.py same MODEL STATE.pth BACK

MODEL is a name in timm, or imgclsmob and its width.
"""
import sys

import numpy as np
import torch


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
    torch.save(model.state_dict(), path)


def same(model, path, back):
    """Fails if the state dict in `back` is not exactly the one in `path`, or the model does not take it."""
    if back.endswith('.safetensors'):
        from safetensors.torch import load_file
        state = load_file(back)
    else:
        state = torch.load(back, weights_only=True)
    expected = torch.load(path, weights_only=True)
    assert set(state) == set(expected)
    for name, value in expected.items():
        assert state[name].dtype == value.dtype and torch.equal(state[name], value), name
    create(model).load_state_dict(state)


if __name__ == '__main__':
    {'make': make, 'same': same}[sys.argv[1]](*sys.argv[2:])
