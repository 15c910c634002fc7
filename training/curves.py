"""``curves.png``: loss, learning rate and errors of a run by epoch."""
import os

from command_line import atomic_write
from training.run_folder import read_stats


def draw_curves(folder):
    """Draws ``curves.png`` from ``stats.json``: loss, learning rate and errors by epoch."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    stats = read_stats(folder)
    figure, panels = plt.subplots(3, 1, sharex=True, figsize=(8, 10))
    for panel, title, names in zip(panels, ('loss', 'learning rate', 'error'), (
            ('cost', 'xentropy-loss'), ('learning_rate',),
            ('train-error-top1', 'val-error-top1', 'train-error-top5', 'val-error-top5'))):
        for name in names:
            points = [(entry['epoch_num'], entry[name]) for entry in stats if name in entry]
            if points:
                panel.plot(*zip(*points), label=name, marker='.' if len(points) < 50 else None)
                panel.legend()
        panel.set_ylabel(title)
        panel.set_ylim(bottom=0)
        panel.grid(True, alpha=0.3)
    panels[-1].set_xlabel('epoch')
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    figure.tight_layout()
    with atomic_write(os.path.join(folder, 'curves.png')) as f:
        figure.savefig(f, format='png', dpi=100)
    plt.close(figure)
