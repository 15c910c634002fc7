"""Reads archives from front to back, within bounds: tars of images, gzipped or not, whose MD5 is computed on the way."""
import concurrent.futures
import contextlib
import gzip
import hashlib
import os
import re
import sys
import tarfile
import zlib

from command_line import InputError, progress_options

PUBLISHED_MD5 = {'ILSVRC2012_img_val.tar': '29b22e2961454d5413ddabcf34fc5622',
                 'ILSVRC2012_img_train.tar': '1d675b47d978889d74fa0da5fadfb00e',
                 'ILSVRC2012_devkit_t12.tar.gz': 'fa75699e90414af021442c21a62c3abf'}
JUNK = re.compile(r'[.]_.*|[.]DS_Store|Thumbs[.]db|desktop[.]ini', re.DOTALL)    # macOS and Windows leave these among pictures
# All are far above what is in ILSVRC12, and bound what a damaged or hostile archive can take.
LARGEST = 1 << 30        # bytes of a member, such as the tar of a class
HEADERS = 1 << 14        # bytes of one member's headers, of which it may have many
TAIL = 1 << 20           # bytes after the end of a tar, which GNU tar fills up to a block
EXPANSION = 20           # bytes out of one byte of gzip, in archives of JPEGs; more are accepted up to ANYWAY bytes
ANYWAY = 1 << 26


class Header(tarfile.TarInfo):
    """A member's header. A missing or damaged one is an error; tarfile itself takes it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tar):
        try:
            return super(Header, cls).fromtarfile(tar)
        except tarfile.EOFHeaderError:
            raise
        except (tarfile.HeaderError, ValueError) as error:    # the latter from damaged extended headers
            raise tarfile.ReadError(str(error))


# ------------------------------------------------------------------------------------------------------------------ bytes

class Source:
    """A file that is read once from front to back, and the MD5 of what was read, which a thread of `pool` computes meanwhile.

    `packed` is the Source that `file` inflates, or None.
    """

    def __init__(self, file, pool, packed=None):
        self.file, self.pool, self.packed, self.ahead, self.size = file, pool, packed, b'', 0
        self.hash, self.blocks, self.hashed = hashlib.md5(), [], 0
        self.hashing = pool.submit(self.update, [])

    def update(self, blocks):
        for block in blocks:
            self.hash.update(block)

    def hash_blocks(self):
        self.hashing.result()
        self.hashing, self.blocks, self.hashed = self.pool.submit(self.update, self.blocks), [], self.size

    def read(self, size):
        ahead, self.ahead = self.ahead[:size], self.ahead[size:]
        data = self.file.read(size - len(ahead))
        self.size += len(data)
        self.blocks.append(data)
        if self.size - self.hashed > 1 << 20:
            self.hash_blocks()
        if self.packed is not None and self.size > max(ANYWAY, EXPANSION * self.packed.size):
            raise tarfile.ReadError("it inflates to more than %d times its size" % EXPANSION)
        return ahead + data

    def starts_with(self, magic):
        self.ahead = self.read(len(magic))
        return self.ahead == magic

    def finish(self):
        """Reads what is left, so that the MD5 is that of the whole file, and gzip verifies its CRC."""
        end = self.size + TAIL
        while self.read(1 << 16):
            if self.size > end:
                raise tarfile.ReadError("it goes on after the end of its tar")
        self.hash_blocks()
        if self.packed is not None:
            self.packed.finish()

    def md5s(self):
        """MD5 of the file, and of what was inflated from it: a browser may have gzipped it, or the other way round."""
        self.hashing.result()
        return ([] if self.packed is None else self.packed.md5s()) + [self.hash.hexdigest()]


class Forward:
    """The next `size` bytes of a file, as a file that tarfile can read and never rewinds: a pipe, or a tar inside a tar.

    tarfile's own streams (mode 'r|') copy everything twice more, and never finish a member of an absurd size. `allowed` is how many
    bytes may be read before it is set again: tarfile reads headers into memory, and calls itself for each header of a member.
    """

    def __init__(self, file, size=sys.maxsize, allowed=sys.maxsize):
        self.file, self.size, self.allowed, self.position = file, size, allowed, 0

    def tell(self):
        return self.position

    def read(self, size):
        size = max(0, min(size, self.size - self.position, LARGEST))    # a damaged header asks for anything
        if size > self.allowed:
            raise tarfile.ReadError("the headers of a member are longer than %d bytes" % HEADERS)
        self.allowed -= size
        return self.advance(size)

    def advance(self, size):
        data = self.file.read(size)
        self.position += len(data)
        return data

    def seek(self, position):
        while self.position < position and self.advance(max(0, min(position - self.position, self.size - self.position, 1 << 20))):
            pass


# -------------------------------------------------------------------------------------------------------------- archives

@contextlib.contextmanager
def archive_errors_named(name):
    """Turns what reading the archive `name` raises into an InputError that names it."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise InputError("%s is truncated, damaged or not a tar archive (%s): get it again" % (name, error))
    except OSError as error:
        if error.filename is not None:    # that of a folder in the tree
            raise
        if error.errno is None:    # gzip's own
            raise InputError("%s is truncated, damaged or not a tar archive (%s): get it again" % (name, error))
        raise InputError("cannot read %s: %s" % (name, error.strerror))


@contextlib.contextmanager
def archive_opened(path):
    """The tar at `path` as a Source, gzipped or not, whatever its name is; reading it moves a progress bar.

    Raises:
        InputError: it cannot be read, or goes on after what was read in the with statement.
    """
    from tqdm import tqdm
    size = os.path.getsize(path) or None    # a pipe has none
    with archive_errors_named(path), concurrent.futures.ThreadPoolExecutor(1) as pool, open(path, 'rb', buffering=1 << 18) as f:
        with tqdm.wrapattr(f, 'read', total=size, desc=os.path.basename(path), **progress_options()) as counted:
            source = Source(counted, pool)
            for _ in range(2):    # a browser may have gzipped a tar.gz again
                if source.starts_with(b'\x1f\x8b'):
                    source = Source(gzip.GzipFile(fileobj=source, mode='rb'), pool, source)
            yield source
            source.finish()


def headers(archive):
    """Reads the tar in file `archive` from front to back: yields (TarInfo, a file to read it from before the next one).

    Raises:
        tarfile.TarError: it is truncated or damaged.
    """
    archive = Forward(archive, allowed=HEADERS)
    with tarfile.open(fileobj=archive, mode='r:', tarinfo=Header) as tar:
        member = tar.next()
        while member is not None:
            if not 0 <= member.size <= LARGEST:
                raise tarfile.ReadError("%.200r has %d bytes in it" % (member.name, member.size))
            archive.allowed = sys.maxsize
            yield member, Forward(archive, member.size)
            tar.members, tar.pax_headers = [], {}    # which would grow with the archive
            archive.allowed = HEADERS
            member = tar.next()


def is_plain(member):
    return member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()


def members(archive, name, form, example):
    """Reads the tar in file `archive` from front to back. What macOS and Windows add to folders is passed over.

    Args:
        name (str): what to call it in a message.
        form (re.Pattern): which names its members may have, such as `example`. Its first group tells them apart.
    Yields:
        tuple: match of a member's name with `form`, its size, and a file to read it from before the next one is asked for.
    Raises:
        InputError: a member is not a plain file, has a name of another form (such as a path), or comes twice.
        tarfile.TarError: the archive is truncated or damaged.
    """
    seen = set()
    for member, file in headers(archive):
        plain_name = re.sub('^[.]/', '', member.name)
        match = form.fullmatch(plain_name)
        if member.isdir() and member.name == '.' and '.' not in seen:    # tar -C folder -cf archive .
            seen.add('.')
            continue
        if is_plain(member) and JUNK.fullmatch(plain_name):
            continue
        if match is None or not is_plain(member):
            raise InputError("%s is refused because of its member %.200r: it must have plain files like %s and nothing else"
                             % (name, member.name, example))
        if match.group(1) in seen:
            raise InputError("%s is refused because it has %s twice" % (name, match.group()))
        seen.add(match.group(1))
        yield match, member.size, file
