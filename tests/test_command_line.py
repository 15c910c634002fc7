import os

import pytest

from command_line import InputError, check_writable, whole_file


def test_whole_file_appears_whole_or_not_at_all(tmp_path):
    path = str(tmp_path / 'file')
    with whole_file(path) as f:
        f.write(b'first')
        assert not os.path.exists(path)
    with pytest.raises(RuntimeError):
        with whole_file(path) as f:
            f.write(b'second')
            raise RuntimeError
    assert os.listdir(str(tmp_path)) == ['file'] and open(path).read() == 'first'
    with pytest.raises(InputError):
        check_writable(str(tmp_path / 'no' / 'file'))
