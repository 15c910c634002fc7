"""The figure: top-1 over multiply-adds and over latency, a line and a marker for each family, a label for each point."""
import collections
import itertools

from evaluation.charts import default_style, new_figure, png

# Shapes tell families apart where there are no colours. The first family is GhostNet: its line is thick, and its labels are bold.
MARKERS = 'osD^vP*XhpH<>'
COLOURS = ['#d62728', '#1f77b4', '#2ca02c', '#9467bd', '#8c564b', '#e377c2', '#17becf', '#ff7f0e', '#555555', '#000000']
FONT, MARKER = 9, 7                                       # sizes in points
DISTANCES = (6, 9, 13, 18, 24, 32, 42, 55, 75, 100)       # of labels, in points
LED = 13                                                  # from here on, a thin line leads to the label
DIRECTIONS = [(1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, 1), (1, 1), (-1, -1)]
CROSSED, MISTAKEN, COVERED = 15, 25, 1000                 # how far, in points, a label goes rather than that: see `fixed_cost`
PASSES = 3                                                # how often each label is placed again, around the others

# Where a label is: its distance, its Bbox, and the Path of the line that leads to it, or None; in pixels but for `distance`.
Place = collections.namedtuple('Place', 'distance box leader')


def places(centre, size, pixel):
    """Where a label can be: an iterable of Place. `centre` of the marker and `size` of the label are in pixels, `pixel` is those
    of a point."""
    from matplotlib.path import Path
    from matplotlib.transforms import Bbox
    for distance, towards in itertools.product(DISTANCES, DIRECTIONS):
        step = distance * pixel / (2 ** 0.5 if all(towards) else 1)
        end = [at + step * side for at, side in zip(centre, towards)]
        corner = [at - length * (1 - side) / 2 for at, length, side in zip(end, size, towards)]
        yield Place(distance, Bbox.from_bounds(*(corner + list(size))), Path([centre, end]) if distance >= LED else None)


def gap(box, centre):
    """The distance of a point from a box, squared."""
    return sum(max(low - at, 0, at - high) ** 2 for low, at, high in zip(box.min, centre, box.max))


def fixed_cost(place, own, centres, markers, lines, around):
    """How bad a place for the label of marker number `own` is, whatever the other labels are: its distance, more for each line that
    it crosses and for being nearer to another marker, and, more than any distance, for what it covers and for leaving the panel.

    Args:
        centres, markers (list): of all points: where they are, and the Bbox of their markers.
        lines (list of Path): those of the families, and the quartiles.
        around (Bbox): the panel.
    """
    covered = place.box.count_overlaps(markers)
    if place.leader is not None:
        covered += sum(place.leader.intersects_bbox(box, filled=False) for box in markers[:own] + markers[own + 1:])
    inside = around.x0 < place.box.x0 and around.y0 < place.box.y0 and place.box.x1 < around.x1 and place.box.y1 < around.y1
    crossed = sum(line.intersects_bbox(place.box, filled=False) for line in lines)
    mistaken = min(gap(place.box, centre) for centre in centres) < gap(place.box, centres[own])
    return place.distance + CROSSED * crossed + MISTAKEN * mistaken + COVERED * (covered + (not inside))


def cost_among(place, others):
    """How much worse a place is because of where the other labels are, `others`."""
    boxes = [other.box for other in others]
    covered = place.box.count_overlaps(boxes)
    if place.leader is not None:
        covered += sum(place.leader.intersects_bbox(box, filled=False) for box in boxes)
    crossed = sum(other.leader.intersects_bbox(place.box, filled=False) for other in others if other.leader is not None)
    return CROSSED * crossed + COVERED * covered


def place_labels(axes, points, segments):
    """Labels points where there is room: over no other label, no marker and, where possible, no line.

    Args:
        points (list): (x, y, text, fontweight) of each marker, in data coordinates.
        segments (list): ((x, y), (x, y)) of each line.
    Returns:
        list of matplotlib.text.Annotation: in the order of `points`.
    """
    from matplotlib.path import Path
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox
    axes.figure.canvas.draw()    # so that the transformations are final
    pixel = axes.figure.dpi / 72
    around = axes.get_window_extent()
    centres = [tuple(axes.transData.transform(point[:2])) for point in points]
    half = (MARKER / 2 + 1.5) * pixel
    markers = [Bbox.from_extents(x - half, y - half, x + half, y + half) for x, y in centres]
    lines = [Path(axes.transData.transform(segment)) for segment in segments]
    halo = [withStroke(linewidth=2.5, foreground='white')]
    labels = [axes.annotate(text, (x, y), xytext=(0, 0), textcoords='offset points', fontsize=FONT, fontweight=weight, ha='left',
                            va='bottom', path_effects=halo, zorder=5) for x, y, text, weight in points]
    candidates = [[(fixed_cost(place, own, centres, markers, lines, around), place)
                   for place in places(centres[own], label.get_window_extent().size, pixel)] for own, label in enumerate(labels)]
    chosen = {}
    for _, own in itertools.product(range(PASSES), range(len(points))):
        others = [place for number, place in chosen.items() if number != own]
        chosen[own] = min(candidates[own], key=lambda candidate: candidate[0] + cost_among(candidate[1], others))[1]
    for own, label in enumerate(labels):
        label.set_position((chosen[own].box.min - centres[own]) / pixel)
        if chosen[own].leader is not None:
            axes.plot(*axes.transData.inverted().transform(chosen[own].leader.vertices).T, color='0.5', lw=0.6, zorder=1)
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
            bars = [((first, y), (third, y)) for (first, third), (_, y) in zip(map(quartiles_of, members), where)]
            for bar in bars:
                axes.plot(*zip(*bar), color='black', lw=1, marker='|', ms=5, zorder=4)
            segments += bars
        points += [(x, y, row['name'], 'bold' if ghost else 'normal') for row, (x, y) in zip(members, where)]
        segments += list(zip(where, where[1:]))
    axes.set_xlim(left=0)
    axes.margins(x=0.14, y=0.08)
    axes.grid(color='0.9')
    axes.tick_params(labelsize=FONT)
    axes.set_ylabel('top-1 on ImageNet (%), as published', fontsize=FONT + 1)
    return place_labels(axes, points, segments)


def draw(result):
    """The figure of what `tools.compare` has measured, a matplotlib.figure.Figure, and the labels of each panel.

    Rows without a top-1 are left out. The panels are one above the other, so that the text is not too small on a page.
    """
    rows = [row for row in result['networks'] if row['top1'] is not None]
    figure = new_figure(8, 11)
    figure.set_dpi(120)
    figure.subplots_adjust(0.09, 0.05, 0.98, 0.97, 0, 0.18)
    upper, lower = figure.subplots(2, 1)
    upper.set_title('Top-1 over multiply-adds', fontsize=FONT + 2)
    upper.set_xlabel('multiply-adds (millions), counted', fontsize=FONT + 1)
    lower.set_title('Top-1 over latency: %s, %s' % (result['runtime'], result['processor']), fontsize=FONT + 2)
    lower.set_xlabel('latency of one picture (ms), one thread: median and quartiles', fontsize=FONT + 1)

    def latency(row):
        return row['latencies'][0]    # of one picture on one thread
    return figure, [
        draw_panel(upper, rows, lambda row: row['multiply_adds'] / 1e6),
        draw_panel(lower, rows, lambda row: latency(row)['ms'], lambda row: latency(row)['quartiles'])]


def as_png(result):
    """The figure as a PNG, bytes."""
    with default_style():
        figure, _ = draw(result)
        return png(figure, figure.dpi)
