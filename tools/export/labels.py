"""Names for classes: one text for each class of a checkpoint, as exports carry them, and the forms that formats need."""
import collections
import json
import re

CLASSES = 'classes'    # what the formats call them


def labels(classes):
    """What to call each class.

    Args:
        classes (list): [(name, words), ...] as a checkpoint records them, or None.
    Returns:
        list of str: the words, or the name where there are none; a text of several classes is followed by the name. None for None.
        Bytes that are not UTF-8 are surrogates in it (PEP 383).
    """
    if classes is None:
        return None
    texts = [words or name for name, words in classes]
    count = collections.Counter(texts)
    return [text if count[text] == 1 else '%s (%s)' % (text, name) for text, (name, _) in zip(texts, classes)]


def as_bytes(texts):
    """Texts as the bytes that they are in the file system."""
    return [text.encode('utf-8', 'surrogateescape') for text in texts]


def as_json(texts):
    """Texts as JSON in ASCII, from which json.loads makes the same ones."""
    return json.dumps(texts)


def printable(texts):
    """Texts without surrogates: a byte that is not UTF-8 is escaped as in Python, such as \\xff."""
    return [text.encode('utf-8', 'surrogateescape').decode('utf-8', 'backslashreplace') for text in texts]


def as_lines(texts):
    """Texts as a label file, bytes of UTF-8 with one a line: a backslash is doubled, and what cannot be there is escaped as in
    Python, a line feed as \\n, a carriage return as \\r and a byte that is not UTF-8 as \\xff."""
    lines = []
    for text in texts:
        for character, escaped in ('\\', '\\\\'), ('\n', '\\n'), ('\r', '\\r'):
            text = text.replace(character, escaped)
        lines.append(text)
    return ''.join(line + '\n' for line in printable(lines)).encode()


def from_lines(content):
    """The inverse of `as_lines`: texts, of lines that another program wrote, too. Raises UnicodeError."""
    lines = content.decode().replace('\r\n', '\n').split('\n')
    return unescaped(lines if lines[-1] else lines[:-1])


def unescaped(lines):
    """What `as_lines` escaped: a list of str."""
    def character(match):
        if match.group(2):
            return bytes([int(match.group(2), 16)]).decode('utf-8', 'surrogateescape')
        return {'n': '\n', 'r': '\r', '\\': '\\'}[match.group(1)]
    return [re.sub(r'\\(\\|n|r|x([89a-f][0-9a-f]))', character, line) for line in lines]


def numbered(count):
    """What to call classes whose names are not known."""
    return ['class %d' % label for label in range(count)]


def classes_of(names, texts):
    """The classes, [(name, words), ...], that `labels` calls `texts`, by their names."""
    ends = [' (%s)' % name for name in names]
    plain = [text[:-len(end)] if text.endswith(end) else text for text, end in zip(texts, ends)]
    for candidate in plain, texts:
        classes = [(name, '' if text == name else text) for name, text in zip(names, candidate)]
        if labels(classes) == texts:
            break
    return classes
