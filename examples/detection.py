"""A CenterNet-style detector on the backbone of GhostNet, which learns to find shapes in generated pictures.

    python examples/detection.py --load models/digits_checkpoint --picture found.png

On maps of stride 8, its head gives the centres, sizes and places of shapes (Zhou et al., "Objects as Points", 2019).
"""
import math
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from command_line import Parser, atomic_write, check_writable, run

KINDS = {'circle': [(math.cos(k * math.pi / 12) / 2, math.sin(k * math.pi / 12) / 2) for k in range(24)],
         'square': [(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)], 'triangle': [(-0.5, 0.5), (0, -0.5), (0.5, 0.5)]}
SIDE, STRIDE, SIZES, MOST, STEPS = 96, 8, (20, 44), 3, 500    # pixels a picture, a cell, a shape; shapes a picture; training steps


def draw(rng):
    """A picture, uint8 (SIDE, SIDE, 3), and its shapes, [(kind, x, y, size), ...], which do not touch."""
    import cv2
    import numpy as np
    colour, shapes = rng.integers(50, 206, 3), []
    picture = colour + rng.normal(0, 12, (SIDE, SIDE, 3))
    for _ in range(4 * MOST):
        kind, size = int(rng.integers(len(KINDS))), int(rng.integers(SIZES[0], SIZES[1] + 1))
        x, y = rng.integers(size // 2, SIDE - size // 2, 2).tolist()
        if len(shapes) < MOST and all(max(abs(x - u), abs(y - v)) > (size + other) / 2 for _, u, v, other in shapes):
            outline = np.int32(np.array(list(KINDS.values())[kind]) * size + (x, y))
            cv2.fillPoly(picture, [outline], (colour + rng.choice([-80, 80], 3)).tolist())
            shapes.append((kind, x, y, size))
    return picture.clip(0, 255).astype('uint8'), shapes


def targets(shapes):
    """What the head learns, float32 (cells, cells, kinds + 4): Gaussians about centres; there, size, place in the cell, 1."""
    import numpy as np
    cells = np.arange(SIDE // STRIDE)
    maps = np.zeros((len(cells), len(cells), len(KINDS) + 4), 'float32')
    for kind, x, y, size in shapes:
        near = np.exp(-18 * (STRIDE / size) ** 2 * ((cells - x // STRIDE) ** 2 + (cells[:, None] - y // STRIDE) ** 2))
        maps[..., kind] = np.maximum(maps[..., kind], near)    # whose deviation is a sixth of the size
        maps[y // STRIDE, x // STRIDE, len(KINDS):] = size / SIZES[1], x / STRIDE % 1, y / STRIDE % 1, 1
    return maps


def batches(rng):
    import numpy as np
    while True:
        pictures, shapes = zip(*[draw(rng) for _ in range(16)])
        yield np.stack(pictures), np.stack([targets(drawn) for drawn in shapes])


def detector(load):
    """A keras.Model of pictures (N, SIDE, SIDE, 3): float32 (N, cells, cells, kinds + 3), logits, sizes, places in cells."""
    from keras_model import GhostNet, keras_on_tensorflow
    keras = keras_on_tensorflow()
    keras.utils.set_random_seed(0)
    image = keras.Input((SIDE, SIDE, 3))
    maps = GhostNet(load, include_top=False, freeze_bn=True)(image)
    larger = [keras.layers.UpSampling2D(scale)(maps[row]) for row, scale in (('Conv2d_11', 2), ('Conv2d_16', 4))]
    x = keras.layers.Concatenate()([maps['Conv2d_5']] + larger)
    x = keras.layers.Conv2D(64, 3, padding='same', activation='relu')(keras.layers.BatchNormalization(momentum=0.9)(x))
    centres = keras.layers.Conv2D(len(KINDS), 1, bias_initializer=keras.initializers.Constant(-2.2))(x)    # probability 0.1
    return keras.Model(image, keras.layers.Concatenate()([centres, keras.layers.Conv2D(3, 1)(x)]))


def loss(target, output):
    """The focal loss of the centres, equation 1 of the paper, and the L1 loss of sizes and places, per shape."""
    from keras import ops
    heat, box, there = target[..., :-4], target[..., -4:-1], target[..., -1:]
    p = ops.clip(ops.sigmoid(output[..., :-3]), 1e-4, 1 - 1e-4)
    focal = ops.where(heat == 1, (1 - p) ** 2 * ops.log(p), (1 - heat) ** 4 * p ** 2 * ops.log(1 - p))
    return (0.5 * ops.sum(there * ops.abs(output[..., -3:] - box)) - ops.sum(focal)) / ops.maximum(ops.sum(there), 1)


def find(output):
    """The shapes in the output for one picture, [(kind, x, y, size), ...]: where a centre is likelier than at the cells around."""
    import numpy as np
    heat = np.pad(1 / (1 + np.exp(-output[..., :-3].max(-1))), 1)
    centres = [(r, c) for r, c in np.argwhere(heat[1:-1, 1:-1] > 0.4) if heat[r + 1, c + 1] == heat[r:r + 3, c:c + 3].max()]
    return [(int(output[r, c, :-3].argmax()), (c + output[r, c, -2]) * STRIDE, (r + output[r, c, -1]) * STRIDE,
             output[r, c, -3] * SIZES[1]) for r, c in centres]


def same(one, other):    # kind, and box, by an IoU of 0.5
    width, height = (max(0, min((one[3] + other[3]) / 2 - abs(one[i] - other[i]), one[3], other[3])) for i in (1, 2))
    return one[0] == other[0] and width * height >= 0.5 * (one[3] ** 2 + other[3] ** 2 - width * height)


def main(args):
    check_writable(args.picture)
    model = detector(args.load)
    import cv2
    import keras
    import numpy as np
    rate = keras.optimizers.schedules.CosineDecay(4e-4, STEPS - 50, warmup_target=4e-3, warmup_steps=50)
    model.compile(keras.optimizers.Adam(rate), loss)
    model.fit(batches(np.random.default_rng(0)), steps_per_epoch=STEPS, verbose=2)
    pictures, shapes = zip(*[draw(np.random.default_rng(1000 + i)) for i in range(64)])
    found = list(map(find, model.predict(np.stack(pictures), verbose=0)))
    right = [shape for drawn, others in zip(shapes, found) for shape in drawn if any(same(shape, other) for other in others)]
    print("%d of %d shapes found, with %d boxes" % (len(right), sum(map(len, shapes)), sum(map(len, found))))
    tiles = [cv2.resize(picture, None, fx=3, fy=3) for picture in pictures]
    for tile, others in zip(tiles, found):
        for kind, x, y, size in others:
            left, top, side = int(3 * (x - size / 2)), int(3 * (y - size / 2)), int(3 * size)
            cv2.rectangle(tile, (left, top, side, side), (255, 255, 255), 2)
            cv2.putText(tile, list(KINDS)[kind], (left, top - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 255), 2)
    with atomic_write(args.picture) as f:
        f.write(cv2.imencode('.png', np.vstack([np.hstack(tiles[:4]), np.hstack(tiles[4:8])]))[1].tobytes())


if __name__ == '__main__':
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument('--load', metavar='CKPT', help="checkpoint that it starts from (default: random weights)")
    parser.add_argument('--picture', metavar='PNG', required=True, help="file for eight pictures with what was found in them")
    run(main, parser.parse_args(), parser.prog)
