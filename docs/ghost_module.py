"""Draws docs/ghost_module.png, the picture of the ghost module in README.md.

    python docs/ghost_module.py
"""
import os

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'ghost_module.png')
BLUE, GREEN, ORANGE, INK = '#9fb8d6', '#7fb58f', '#eeb172', '#22303f'
STEP_X, STEP_Y = 0.17, 0.13    # from one feature map of a stack to the next


def stack(axes, x, y, width, height, colours):
    """Draws a stack of feature maps. (x, y) is the lower left corner of the one in front. Returns the stack's right edge."""
    for depth, colour in reversed(list(enumerate(reversed(colours)))):
        axes.add_patch(Rectangle((x + depth * STEP_X, y + depth * STEP_Y), width, height, facecolor=colour, edgecolor=INK,
                                 linewidth=1.1))
    return x + width + (len(colours) - 1) * STEP_X


def arrow(axes, start, end, bend=0.0, colour=INK):
    axes.add_patch(FancyArrowPatch(start, end, connectionstyle='arc3,rad=%g' % bend, arrowstyle='-|>', mutation_scale=15,
                                   linewidth=1.5, color=colour, shrinkA=0, shrinkB=0))


def label(axes, x, y, text, size=12.5, colour=None, ha='center', va='center'):
    axes.text(x, y, text, fontsize=size, color=INK if colour is None else colour, ha=ha, va=va,
              linespacing=1.35)


def draw(axes):
    # Input
    right = stack(axes, 0.3, 2.05, 1.25, 1.5, [BLUE] * 5)
    label(axes, 1.25, 1.45, "input\n$c$ feature maps")

    # Primary convolution
    arrow(axes, (right + 0.15, 3.05), (4.15, 3.05))
    label(axes, 3.28, 3.68, "primary\n1×1 convolution\n+ BN (+ ReLU)", va='bottom', size=11.5)

    # Intrinsic maps
    stack(axes, 4.4, 2.2, 1.25, 1.5, [GREEN] * 3)
    label(axes, 5.2, 1.45, "intrinsic maps\n$m = \\lceil n / s \\rceil$")

    # Identity
    arrow(axes, (6.2, 3.9), (10.05, 4.55), bend=-0.16, colour='#3f7a52')
    label(axes, 7.9, 4.95, "identity", colour='#3f7a52')

    # Cheap operations: a depthwise kernel for each map
    for i, name in enumerate(("$\\Phi_1$", "$\\Phi_2$", "$\\Phi_m$")):
        y = 2.75 - i * 0.72 - (0.24 if i == 2 else 0)
        arrow(axes, (6.14, 3.0 - i * 0.3), (7.28, y), colour='#b5701f')
        axes.add_patch(Rectangle((7.3, y - 0.24), 0.72, 0.48, facecolor='#fbe6cd', edgecolor='#b5701f', linewidth=1.2))
        label(axes, 7.66, y, name, size=14)
        arrow(axes, (8.02, y), (10.05, 2.25 - i * 0.42), colour='#b5701f')
    label(axes, 7.66, 1.56, "⋮", size=14)
    label(axes, 7.66, 0.33, "cheap operations: depthwise 3×3\n+ BN (+ ReLU)", size=11.5)

    # Output
    stack(axes, 10.35, 3.75, 1.25, 1.2, [GREEN] * 3)
    stack(axes, 10.35, 1.3, 1.25, 1.2, [ORANGE] * 3)
    label(axes, 12.25, 4.5, "intrinsic\nmaps", ha='left', size=11.5)
    label(axes, 12.25, 2.05, "ghost maps\n$n - m$", ha='left', size=11.5)
    axes.plot([10.15, 10.15, 13.6, 13.6, 10.15], [1.08, 5.5, 5.5, 1.08, 1.08], color=INK, linewidth=1.1, linestyle=(0, (5, 4)))
    label(axes, 11.87, 0.55, "output: concatenation,\n$n$ feature maps")


def main():
    figure = Figure(figsize=(12, 5), dpi=100)
    axes = figure.add_axes([0, 0, 1, 1])
    axes.set_xlim(0, 13.9)
    axes.set_ylim(-0.05, 5.74)
    axes.axis('off')
    draw(axes)
    figure.savefig(OUT, dpi=100, facecolor='white')


if __name__ == '__main__':
    main()
