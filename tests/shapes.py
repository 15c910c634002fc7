"""Pictures of drawn shapes, with a folder for each class: `python tests/shapes.py FOLDER` makes 200."""
import os
import sys

import cv2
import numpy as np

SHAPES = ('circle', 'red square', 'triangle')


def shape(name, rng):
    """A picture of one of SHAPES, uint8 (H, W, 3) BGR, of random size, colours and place."""
    height, width = rng.randint(120, 320, 2)
    image = np.full((height, width, 3), rng.randint(0, 110, 3), np.uint8)
    radius = int(min(height, width) * rng.uniform(0.2, 0.4))
    x, y = rng.randint(radius, width - radius), rng.randint(radius, height - radius)
    colour = (40, 40, 230) if name == 'red square' else rng.randint(150, 256, 3).tolist()
    if name == 'circle':
        cv2.circle(image, (x, y), radius, colour, -1)
    elif name == 'red square':
        cv2.rectangle(image, (x - radius, y - radius), (x + radius, y + radius), colour, -1)
    else:
        cv2.fillPoly(image, [np.int32([[x, y - radius], [x - radius, y + radius], [x + radius, y + radius]])], colour)
    return np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)


def draw(folder, count=200, seed=0):
    """Writes `count` pictures to `folder`/<class>/, in turn as JPEG and PNG. Returns the folder."""
    rng = np.random.RandomState(seed)
    for i in range(count):
        name = SHAPES[i % len(SHAPES)]
        os.makedirs(os.path.join(str(folder), name), exist_ok=True)
        path = os.path.join(str(folder), name, '%03d.%s' % (i, ('jpg', 'png')[i % 2]))
        assert cv2.imwrite(path, shape(name, rng))
    return str(folder)


if __name__ == '__main__':
    draw(sys.argv[1])
