"""The figure: top-1 over multiply-adds and over latency, a line and a marker for each family, a label for each point."""
import collections
import itertools

from command_line import atomic_write

# Shapes tell families apart where there are no colours. The first family is GhostNet: its line is thick, and its labels are bold.
MARKERS = 'osD^vP*XhpH<>'
COLOURS = ['#d62728', '#1f77b4', '#2ca02c', '#9467bd', '#8c564b', '#e377c2', '#17becf', '#ff7f0e', '#555555']
FONT, MARKER = 9, 7                                       # sizes in points
DISTANCES = (6, 9, 13, 18, 24, 32, 42, 55, 75, 100)       # of labels, in points
LED = 13                                                  # from here on, a thin line leads to the label
DIRECTIONS = [(1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, 1), (1, 1), (-1, -1)]


def crosses(box, start, end):
    """Whether the segment between two points touches a box, (x0, y0, x1, y1)."""
    low, high = 0.0, 1.0
    for axis in (0, 1):
        origin, length = start[axis], end[axis] - start[axis]
        if length == 0:
            if not box[axis] <= origin <= box[axis + 2]:
                return False
            continue
        entry, leaving = sorted(((box[axis] - origin) / length, (box[axis + 2] - origin) / length))
        low, high = max(low, entry), min(high, leaving)
    return low <= high


def overlap(box, other):
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


def places(point, size, pixel):
    """Where a label of `size` can be: (distance, box, where its leading line ends) of each place, in pixels."""
    for distance, towards in itertools.product(DISTANCES, DIRECTIONS):
        step = distance * pixel / (2 ** 0.5 if all(towards) else 1)
        end = [at + step * side for at, side in zip(point, towards)]
        corner = [at - length * (1 - side) / 2 for at, length, side in zip(end, size, towards)]
        yield distance, (corner[0], corner[1], corner[0] + size[0], corner[1] + size[1]), end


def place_labels(axes, points, segments):
    """Labels points where there is room: over no other label, no marker and, where possible, no line.

    Args:
        points (list): (x, y, text, fontweight) of each marker, in data coordinates.
        segments (list): ((x, y), (x, y)) of each line.
    Returns:
        list of matplotlib.text.Annotation: in the order of `points`.
    """
    figure = axes.figure
    figure.canvas.draw()    # so that the transformations are final
    renderer, pixel = figure.canvas.get_renderer(), figure.dpi / 72
    around = axes.get_window_extent(renderer).extents
    centres = [axes.transData.transform(point[:2]) for point in points]
    half = (MARKER / 2 + 1.5) * pixel
    taken = [(x - half, y - half, x + half, y + half) for x, y in centres]
    lines = [tuple(axes.transData.transform(end) for end in segment) for segment in segments]
    labels = []
    for (x, y, text, weight), centre in zip(points, centres):
        label = axes.annotate(text, (x, y), xytext=(0, 0), textcoords='offset points', fontsize=FONT, fontweight=weight,
                              ha='left', va='bottom')
        extent = label.get_window_extent(renderer)
        free = []
        for distance, box, end in places(centre, (extent.width, extent.height), pixel):
            inside = around[0] < box[0] and around[1] < box[1] and box[2] < around[2] and box[3] < around[3]
            if inside and not any(overlap(box, other) for other in taken) and not (
                    distance >= LED and any(crosses(other, centre, end) for other in taken[len(points):])):
                free.append((distance + 15 * sum(crosses(box, *line) for line in lines), box, end, distance >= LED))
        if not free:    # as with hundreds of points
            label.remove()
            continue
        _, box, end, led = min(free, key=lambda place: place[0])
        label.set_position([(corner - at) / pixel for corner, at in zip(box, centre)])
        if led:
            axes.plot(*zip((x, y), axes.transData.inverted().transform(end)), color='0.6', lw=0.6, zorder=1)
            lines.append((centre, end))
        labels.append(label)
        taken.append(box)
    return labels


def draw_panel(axes, rows, x_of, quartiles_of=None):
    """One panel: top-1 over `x_of(row)`, with quartiles, (first, third), where they are given. Returns the labels."""
    groups = collections.OrderedDict()
    for row in rows:
        groups.setdefault(row['family'], []).append(row)
    points, segments = [], []
    for number, (family, members) in enumerate(groups.items()):
        members = sorted(members, key=x_of)
        where = [(x_of(row), row['top1']) for row in members]
        ghost = family == 'GhostNet'
        axes.plot(*zip(*where), marker=MARKERS[number % len(MARKERS)], color=COLOURS[number % len(COLOURS)], ms=MARKER,
                  lw=2.2 if ghost else 1.1, ls='-' if ghost else '--', mec='black', mew=0.6, zorder=3)
        if quartiles_of is not None:
            for row, (x, y) in zip(members, where):
                axes.plot(quartiles_of(row), (y, y), color='black', lw=0.8, zorder=2)
        points += [(x, y, row['name'], 'bold' if ghost else 'normal') for row, (x, y) in zip(members, where)]
        segments += list(zip(where, where[1:]))
    axes.set_xlim(left=0)
    axes.margins(x=0.14, y=0.1)
    axes.grid(color='0.9')
    axes.tick_params(labelsize=FONT)
    return place_labels(axes, points, segments)


def draw(result):
    """The figure of what `tools.compare` has measured, a matplotlib.figure.Figure, and the labels of each panel.

    Rows without a top-1 are left out.
    """
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    rows = [row for row in result['networks'] if row['top1'] is not None]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 6.2), dpi=100)
    figure.subplots_adjust(0.05, 0.09, 0.99, 0.93, 0.1)
    for axes, x, title in (
            (left, 'multiply-adds (millions), counted', 'Top-1 over multiply-adds'),
            (right, 'latency of one picture (ms), one thread', 'Top-1 over latency: %s, %s' % (result['runtime'], result['processor']))):
        axes.set_xlabel(x, fontsize=FONT + 1)
        axes.set_title(title, fontsize=FONT + 2)
    left.set_ylabel('top-1 on ImageNet (%), as published', fontsize=FONT + 1)

    def latency(row):
        return next(entry for entry in row['latencies'] if entry['pictures'] == entry['threads'] == 1)
    return figure, [
        draw_panel(left, rows, lambda row: row['multiply_adds'] / 1e6),
        draw_panel(right, rows, lambda row: latency(row)['ms'], lambda row: latency(row)['quartiles'])]


def save(result, path):
    """Writes the figure as a PNG."""
    figure, _ = draw(result)
    with atomic_write(path) as f:
        figure.savefig(f, format='png')
