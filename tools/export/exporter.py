"""Makes exports, compares each with the graph in its own runtime, and gives those that pass their final names."""
import collections
import contextlib
import glob
import math
import os
import re
import shutil
import sys

from tf_compat import TENSORFLOW_VERSION

import numpy as np
import tabulate

from command_line import InputError, run_module, sync, write_json, write_npz
from evaluation import frozen
from tools.darknet import Layout
from tools.export.compare import Reference, difference
from tools.export.formats import FORMATS
from tools.export.labels import labels

LARGEST_ERROR = 1e-4
LARGEST_UNFOLDED = 1e-5     # of a network whose BN is not folded
LARGEST_RESIZED = 1e-3      # of one that resizes pictures: some pixels differ from OpenCV's by one level
HEADERS = ('export', 'runtime', 'MB', 'ms an image', 'to the graph', 'relative error', 'same top-1')
Export = collections.namedtuple('Export', 'format int8 out')    # one to make


def largest_error(reference):
    """The largest relative error of the outputs that an export may have."""
    if reference.args.any_size:
        return LARGEST_RESIZED
    return LARGEST_UNFOLDED if reference.unfolded else LARGEST_ERROR


def display_name(export):
    return export.format + (' int8' if export.int8 else '')


def files_below(path):
    """A file, or a folder with all that is in it."""
    return [path] + [os.path.join(folder, name) for folder, folders, names in os.walk(path) for name in folders + names]


def publish(path, out):
    """Gives a file or folder its final name, when it is on the disk."""
    for file in files_below(path):
        sync(file)
    os.replace(path, os.path.realpath(out))    # a link stays, and its target is replaced


@contextlib.contextmanager
def full_disk_explained(out, work):
    """Names the file `out` in what is raised when the disk with the folder `work` is full, of which not every library speaks."""
    try:
        yield
    except (InputError, OSError) as error:
        if re.search('space left|quota exceeded', str(error), re.IGNORECASE) or shutil.disk_usage(work).free < 2 ** 20:
            raise InputError("cannot write %s: the disk is full; make room for four times the checkpoint's size" % out)
        raise


class Exporter:
    """Exports of one network. `work` is a folder for what is unfinished, `tf1_python` a Python with TensorFlow 1.13.1 or None."""

    def __init__(self, args, work, tf1_python):
        self.reference, self.work, self.tf1_python = Reference(args), work, tf1_python
        self.rows, self.int8_errors = [], None
        if args.format == 'darknet':
            Layout(self.reference.model)    # raises what Darknet cannot express
        for name in self.reference.images:
            write_npz(self.file(name + '.npz'), *self.reference.inputs(name))
        write_json(self.file('details.json'), {
            'labels': None if args.features else labels(self.reference.restore.record.classes),
            'classes': self.reference.restore.record.classes, 'variant': self.reference.restore.variant,
            'image_size': self.reference.model.image_size,
            'rgb': args.rgb, 'raw': args.raw, 'features': args.features, 'any_size': args.any_size})
        graph_def = self.reference.frozen_graph()
        for name, content in ('graph', graph_def), ('dilations', frozen.with_dilations(graph_def, self.reference.outputs)):
            with open(self.file(name), 'wb') as f:
                f.write(content.SerializeToString(deterministic=True))
        self.add_row('none, the checkpoint', 'TensorFlow ' + TENSORFLOW_VERSION,
                     glob.glob(glob.escape(self.reference.restore.path) + '.*'), self.reference.latency)

    def file(self, name):
        return os.path.join(self.work, name)

    def make(self, export):
        """Makes an Export, compares it, and publishes it if it passes. Returns whether it does."""
        form, outputs = FORMATS[export.format], ','.join(self.reference.outputs)
        path = self.file(form.file)
        if self.reference.args.trainable:
            run_module('tools.export.keras_trainable', self.file('dilations'), path, outputs,
                       self.file('details.json'))
        else:
            calibration = [self.file('calibration.npz')] if export.int8 else []
            run_module('tools.export.formats', export.format, self.file('dilations' if form.dilations else 'graph'), path, outputs,
                       self.file('details.json'), *calibration)
        pythons = [sys.executable]
        if export.format == 'frozen' and self.tf1_python is not None:
            pythons.append(self.tf1_python)
        passes = [self.compare(export, path, python) for python in pythons]    # all of them, for the table
        if all(passes):
            publish(path, export.out)
        return all(passes)

    def compare(self, export, path, python):
        """Runs the export at `path` in its runtime and adds a row to the table. Returns whether it gives what the graph does."""
        images = 'tree' if export.int8 else 'pictures'
        expected = self.reference.expected[images]
        run_module('tools.export.runtimes', export.format, path, self.file(images + '.npz'), self.file('result.npz'),
                   ','.join(self.reference.outputs), python=python)
        with np.load(self.file('result.npz')) as result:
            error, same = difference(result, expected)
            count = len(expected[self.reference.outputs[0]])
            self.add_row(display_name(export), result['runtime'], files_below(path), float(result['latency']), '%.1e' % error,
                         '' if same is None else '%d of %d' % (same, count))
            if export.int8:
                self.int8_errors = [np.mean(values[self.reference.outputs[0]].argmax(1) != self.reference.labels)
                                    for values in (result, expected)]
                return math.isfinite(error) and self.int8_errors[0] - self.int8_errors[1] <= self.reference.args.int8_loss + 1e-9
        return error <= largest_error(self.reference) and same in (None, count)

    def add_row(self, name, runtime, paths, latency, error='', same=''):
        megabytes = sum(os.path.getsize(path) for path in paths if os.path.isfile(path)) / 1e6
        self.rows.append((name, runtime, '%.2f' % megabytes, '%.1f' % (1e3 * latency), '%.2f' % (latency / self.reference.latency),
                          error, same))


def export_all(args, plan, work, tf1_python):
    """Makes the exports in `plan`, a list of Export, and prints how they compare.

    Returns:
        int: exit status, 1 if one does not give what the graph does.
    """
    refused = []
    with full_disk_explained(args.out, work):
        exporter = Exporter(args, work, tf1_python)
    try:
        for export in plan:
            with full_disk_explained(export.out, work):
                if not exporter.make(export):
                    refused.append(export)
    finally:    # if a later one cannot be made, of those that were
        print(tabulate.tabulate(exporter.rows, headers=HEADERS, disable_numparse=True,
                                colalign=('left', 'left') + ('right',) * (len(HEADERS) - 2)))
    if exporter.int8_errors is not None:
        images = exporter.reference.images
        print("int8: calibrated with %d images, compared on %d of the validation set: top-1 error %.4f, that of the graph %.4f"
              % (len(images['calibration']), len(images['tree']), exporter.int8_errors[0], exporter.int8_errors[1]))
    for export in refused:
        why = "does not give what the graph does"
        if export.int8:
            why = "has a top-1 error of %.4f, the graph of %.4f: more than --int8_loss %g is lost" % (
                exporter.int8_errors[0], exporter.int8_errors[1], args.int8_loss)
        sys.stderr.write("export: the export '%s' %s, and was not written\n" % (display_name(export), why))
    return 1 if refused else 0
