"""The pictures of a report, PNG: the confusion matrix and the calibration plot. By matplotlib, without TensorFlow."""
import contextlib
import io

COUNTED = 20          # up to so many classes, the cells have their counts in them
LONGEST_NAME = 22     # characters of a class beside the matrix
BLUE, GREY = '#0b5cad', '#57606a'


@contextlib.contextmanager
def default_style():
    """matplotlib as it is installed, whatever the user's settings are."""
    import matplotlib.style
    with matplotlib.style.context('default'):
        yield


def png(figure, dpi=100):
    """The bytes of a figure."""
    out = io.BytesIO()
    figure.savefig(out, format='png', dpi=dpi, facecolor='white')
    return out.getvalue()


def new_figure(width, height):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def tick_labels(names):
    """`names`, shortened; in place of one that matplotlib's font cannot write, its number."""
    from matplotlib.font_manager import findfont, get_font
    known = get_font(findfont('DejaVu Sans')).get_charmap()
    labels = []
    for number, name in enumerate(names):
        if not all(ord(character) in known for character in name):
            name = 'class %d' % number
        elif len(name) > LONGEST_NAME:
            name = name[:LONGEST_NAME - 1] + '…'
        labels.append(name.replace('$', '\\$'))    # $...$ would be a formula
    return labels


def draw_matrix(matrix, names):
    """A confusion matrix, int (classes, classes), coloured by the share of each row: PNG, bytes. `names`: str of each class."""
    shares = matrix / matrix.sum(1, keepdims=True).clip(1)
    count = len(names)
    with default_style():
        side = 2.4 + max(count * (0.4 if count <= COUNTED else 0.155), 2)    # inches of 100 pixels: the page is 11 wide
        figure = new_figure(side, side)
        axes = figure.add_subplot(1, 1, 1)
        depth = shares ** 0.5    # or few mistakes could not be seen beside the diagonal
        axes.imshow(depth, cmap='Blues', vmin=0, vmax=1)
        labels = tick_labels(names)
        axes.tick_params(which='both', length=0, labelsize=10 if count <= COUNTED else 7.5)
        axes.set_xticks(range(count))
        axes.set_yticks(range(count))
        axes.set_xticklabels(labels, rotation=90)
        axes.set_yticklabels(labels)
        axes.set_xticks([edge - 0.5 for edge in range(count + 1)], minor=True)
        axes.set_yticks([edge - 0.5 for edge in range(count + 1)], minor=True)
        axes.grid(which='minor', color='#d8dee4', linewidth=0.6)
        axes.set_xlabel('predicted class')
        axes.set_ylabel('true class')
        if count <= COUNTED:
            for row in range(count):
                for column in range(count):
                    if matrix[row, column]:
                        axes.text(column, row, '%d' % matrix[row, column], ha='center', va='center', fontsize=9,
                                  color='white' if depth[row, column] > 0.6 else 'black')
        figure.tight_layout()
        return png(figure)


def draw_calibration(bins):
    """Accuracy by probability, and below it the pictures of each bin: PNG, bytes. `bins`: [measures.Bin]."""
    with default_style():
        figure = new_figure(5, 5)    # small, so that its text can be read on a telephone
        upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={'height_ratios': [3, 1]})
        upper.plot([0, 1], [0, 1], linestyle='--', color=GREY, label='perfectly calibrated')
        upper.plot([found.probability for found in bins], [found.accuracy for found in bins], marker='o', color=BLUE,
                   label='this network')
        upper.set_xlim(0, 1)
        upper.set_ylim(0, 1.02)
        upper.set_ylabel('accuracy')
        upper.legend(loc='best')
        for found in bins:
            lower.bar(found.start, found.pictures, width=found.end - found.start, align='edge', color=BLUE, edgecolor='white')
        lower.set_yscale('symlog', linthresh=1)
        lower.set_ylabel('pictures')
        lower.set_xlabel('probability of the predicted class')
        for axes in (upper, lower):
            axes.grid(True, alpha=0.3)
        figure.tight_layout()
        return png(figure, 150)
