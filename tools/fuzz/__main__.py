"""Feeds damaged files to what reads files, for as long as wanted: each must be read or refused in one line, within bounds.

    python -m tools.fuzz --minutes 10
    python -m tools.fuzz --minutes 1 --targets pictures index --seed 7 --keep failures

Hypothesis draws the damage and shrinks what fails. Every target reads in a process of its own, whose memory may grow by 1 GB and
which has 20 seconds for a file (on Linux). Exit status: 1 if something failed; --keep has the files then.
"""
import argparse
import collections
import contextlib
import io
import os
import struct
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))    # python tools/fuzz works too

from command_line import InputError, Parser, number, run
from tools.fuzz.child import FAILURES, OUTCOMES, Child
from tools.fuzz.targets import TARGETS

# What parsers stumble over: sizes, ends, numbers.
PIECES = [struct.pack(form, value) for form in ('<I', '>I', '<Q', '<H', '>H') for value in (0, 1, 255, 32767, 65535)] + [
    b'\xff\xff\xff\xff', b'\x7f\xff\xff\xff', b'\xff' * 9 + b'\1', b'\0', b'\r\n', b'9' * 20, b'-1']


def mutated(data, changes):
    """`data` after changes (kind, place as a share of 2**16, bytes)."""
    data = bytearray(data)
    for kind, place, piece in changes:
        at = place * (len(data) + 1) >> 16
        if kind == 'overwrite':
            data[at:at + len(piece)] = piece
        elif kind == 'insert':
            data[at:at] = piece
        elif kind == 'remove':
            del data[at:at + len(piece)]
        elif kind == 'cut':
            del data[at:]
        elif kind == 'repeat':
            data[at:at] = data[at:at + 16] * (len(piece) + 1)
    return bytes(data)


class Failure(Exception):
    """An input that is neither read nor refused."""


def fuzz(name, seconds, seed, folder, keep):
    """Feeds a target for so many seconds. Returns the outcomes, a Counter."""
    import hypothesis
    from hypothesis import strategies as st
    child, counts, last = Child(name, folder), collections.Counter(), {}
    sources = [(file, content) for file, contents in sorted(child.seeds.items()) for content in contents]
    if not sources:
        print("%s: its packages are missing (requirements-interop.txt), nothing is tried" % name)
        return counts
    change = st.tuples(st.sampled_from(['overwrite', 'insert', 'remove', 'cut', 'repeat']), st.integers(0, 2 ** 16 - 1),
                       st.one_of(st.sampled_from(PIECES), st.binary(min_size=1, max_size=8)))
    end, mend = time.time() + seconds, TARGETS[name].mend

    def attempt(source, changes, mended):
        if time.time() > end:
            return
        file, content = source
        data = mutated(content, changes)
        data = mend(data) if mended and mend else data
        outcome, said = child.attempt(file, data)
        counts[outcome] += 1
        if outcome in FAILURES:
            last.update(file=file, data=data, outcome=outcome, said=said)
            raise Failure(outcome)

    child.start()
    while time.time() < end:
        test = hypothesis.seed(seed)(hypothesis.settings(
            max_examples=200, deadline=None, database=None, report_multiple_bugs=False,
            suppress_health_check=list(hypothesis.HealthCheck))(
                hypothesis.given(st.sampled_from(sources), st.lists(change, min_size=1, max_size=6), st.booleans())(attempt)))
        try:
            with contextlib.redirect_stdout(io.StringIO()):    # Hypothesis prints the example; it is kept as a file
                test()
        except (Failure, hypothesis.errors.Flaky):
            os.makedirs(keep, exist_ok=True)
            path = os.path.join(keep, '%s-%d-%s' % (name, seed, last['file']))
            with open(path, 'wb') as f:
                f.write(last['data'])
            sys.stderr.write("%s: %s: %s: %s\n" % (name, last['outcome'], path, last['said'].strip()[-2000:]))
        seed += 1
    child.stop()
    return counts


def main(args):
    try:
        import hypothesis  # noqa: F401
    except ImportError:
        raise InputError("the fuzzer needs the package 'hypothesis' of today's stack: pip install -r requirements.txt")
    import tabulate
    rows, failed = [], False
    for name in args.targets:
        with tempfile.TemporaryDirectory() as folder:
            counts = fuzz(name, 60 * args.minutes / len(args.targets), args.seed, folder, args.keep)
        rows.append([name, sum(counts.values())] + [counts[outcome] for outcome in OUTCOMES])
        failed = failed or any(counts[outcome] for outcome in FAILURES)
    print(tabulate.tabulate(rows, headers=('target', 'inputs') + OUTCOMES))
    return 1 if failed else 0


def parse_args():
    parser = Parser(prog='fuzz', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--minutes', type=number(float, lambda minutes: minutes > 0, "a number above 0"), default=10,
                        help="how long, for all targets together (default: 10)")
    parser.add_argument('--targets', nargs='+', choices=list(TARGETS), default=list(TARGETS), help="what to feed (default: all)")
    parser.add_argument('--seed', type=number(int, lambda n: n >= 0, "an integer from 0"), default=0, help="the first seed")
    parser.add_argument('--keep', default='fuzz_failures', metavar='DIR', help="where files that fail go (default: fuzz_failures)")
    return parser.parse_args()


if __name__ == '__main__':
    run(main, parse_args(), 'fuzz')
