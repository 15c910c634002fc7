"""The GhostNets of other libraries, for test_import_weights.py. A process of its own: Triton does not come up beside TensorFlow.

    python tests/tools/their_models.py make MODEL SEED STATE [IMAGES.npy LOGITS.npy]
    python tests/tools/their_models.py same MODEL STATE BACK

MODEL is a name in timm, or imgclsmob, iamhankai or d-li14 and its width; STATE and BACK are files of torch.save, or in safetensors
by their ending.
"""
import math
import sys

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

# Kernel, expanded channels, channels, SE, stride (paper, table 1).
BOTTLENECKS = [(3, 16, 16, 0, 1), (3, 48, 24, 0, 2), (3, 72, 24, 0, 1), (5, 72, 40, 1, 2), (5, 120, 40, 1, 1), (3, 240, 80, 0, 2),
               (3, 200, 80, 0, 1), (3, 184, 80, 0, 1), (3, 184, 80, 0, 1), (3, 480, 112, 1, 1), (3, 672, 112, 1, 1),
               (5, 672, 160, 1, 2), (5, 960, 160, 0, 1), (5, 960, 160, 1, 1), (5, 960, 160, 0, 1), (5, 960, 160, 1, 1)]


# Two repositories, iamhankai/ghostnet.pytorch (ghost_net.py, the last version) and d-li14/ghostnet.pytorch (ghostnet.py), cannot be
# installed. What follows is the network that their files define, with the names of its tensors.

def convolution(inputs, outputs, kernel, stride=1, groups=1, relu=True):
    layers = [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*(layers + [nn.ReLU()] * relu))


class Ghost(nn.Module):
    def __init__(self, inputs, outputs, relu):
        super().__init__()
        self.outputs, half = outputs, math.ceil(outputs / 2)
        self.primary_conv = convolution(inputs, half, 1, relu=relu)
        self.cheap_operation = convolution(half, half, 3, groups=half, relu=relu)

    def forward(self, x):
        x = self.primary_conv(x)
        return torch.cat([x, self.cheap_operation(x)], 1)[:, :self.outputs]


class Gate(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(channels, channels // 4), nn.ReLU(), nn.Linear(channels // 4, channels))

    def forward(self, x):
        return x * self.fc(x.mean([2, 3])).clamp(0, 1)[:, :, None, None]


class Block(nn.Module):
    def __init__(self, kernel, inputs, expanded, outputs, se, stride, plain):
        super().__init__()
        depthwise = convolution(expanded, expanded, kernel, stride, expanded, relu=False) if stride > 1 else nn.Identity()
        self.conv = nn.Sequential(Ghost(inputs, expanded, True), depthwise, Gate(expanded) if se else nn.Identity(),
                                  Ghost(expanded, outputs, False))
        self.shortcut = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(convolution(inputs, inputs, 3 if plain else kernel, stride, inputs, relu=plain),
                                          *convolution(inputs, outputs, 1, relu=False))

    def forward(self, x):
        return self.conv(x) + self.shortcut(x)


class OfRepository(nn.Module):
    """GhostNet of iamhankai, or of d-li14 if `plain`: the shortcuts' depthwise convolutions are 3x3 there, with ReLU."""

    def __init__(self, width, plain):
        super().__init__()

        def channels(depth):
            rounded = max(4, int(depth * width + 2) // 4 * 4)
            return rounded + 4 * (rounded < 0.9 * depth * width)
        inputs = channels(16)
        features = [convolution(3, inputs, 3, 2)]
        for kernel, expanded, outputs, se, stride in BOTTLENECKS:
            features.append(Block(kernel, inputs, channels(expanded), channels(outputs), se, stride, plain))
            inputs = channels(outputs)
        self.features = nn.Sequential(*features)
        self.squeeze = convolution(inputs, channels(960), 1)
        self.classifier = nn.Sequential(nn.Linear(channels(960), 1280, bias=False), nn.BatchNorm1d(1280), nn.ReLU(),
                                        nn.Dropout(0.2), nn.Linear(1280, 1000))

    def forward(self, x):
        return self.classifier(self.squeeze(self.features(x)).mean([2, 3]))


def create(model):
    if model.startswith(('iamhankai', 'd-li14')):
        library, width = model.split()
        return OfRepository(float(width), library == 'd-li14')
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
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
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
