"""A path holds all of a file or what was there before."""

import errno
import os
import stat
from pathlib import Path

import pytest

from acmix_mm import atomic_write
from acmix_mm.atomic_write import WriteError, remove_leftovers, write_atomically


def test_writes_text_and_bytes(tmp_path):
    write_atomically(tmp_path / 'new/folder/text.md', 'Zürich')
    assert (tmp_path / 'new/folder/text.md').read_bytes() == 'Zürich'.encode()
    write_atomically(str(tmp_path / 'new/folder/text.md'), b'\x00')
    assert (tmp_path / 'new/folder/text.md').read_bytes() == b'\x00'
    assert len(list((tmp_path / 'new/folder').iterdir())) == 1


@pytest.mark.parametrize('step', ['_write', 'replace'])
@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EIO, errno.EFBIG])
def test_a_failure_keeps_the_former_file(tmp_path, monkeypatch, step, number):
    file = tmp_path / 'results.csv'
    file.write_text('former')

    def fail(path, *_):
        Path(path).write_text('half')
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os if step == 'replace' else atomic_write, step, fail)
    with pytest.raises(WriteError) as error:
        write_atomically(file, 'new')
    assert str(error.value) == (
        f"'{file}' cannot be written: {os.strerror(number)}. What it contained before is kept."
    )
    assert file.read_text() == 'former'
    assert list(tmp_path.iterdir()) == [file]


def test_permissions_and_links_are_kept(tmp_path):
    (tmp_path / 'page.md').write_text('former')
    (tmp_path / 'page.md').chmod(0o640)
    (tmp_path / 'link.md').symlink_to('page.md')
    write_atomically(tmp_path / 'link.md', 'new')
    assert (tmp_path / 'link.md').is_symlink()
    assert (tmp_path / 'page.md').read_text() == 'new'
    assert stat.S_IMODE((tmp_path / 'page.md').stat().st_mode) == 0o640
    umask = os.umask(0o022)
    os.umask(umask)
    write_atomically(tmp_path / 'new.md', 'new')
    assert stat.S_IMODE((tmp_path / 'new.md').stat().st_mode) == 0o666 & ~umask


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    reader = os.open(tmp_path / 'pipe', os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(tmp_path / 'pipe', 'text')
    assert os.read(reader, 10) == b'text'
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / 'pipe').stat().st_mode)


@pytest.mark.parametrize('path', ['', '.', '/', 'folder', 'folder/'])
def test_folders(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'folder').mkdir()
    with pytest.raises(WriteError, match='cannot be written: it is a folder'):
        write_atomically(path, 'text')


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(WriteError, match=r'file/a.md. cannot be written: (Not a dir|File exists)'):
        write_atomically(tmp_path / 'file/a.md', 'text')
    with pytest.raises(WriteError, match=r'/proc/a.md. cannot be written'):
        write_atomically('/proc/a.md', 'text')
    with pytest.raises(WriteError, match='File name too long'):
        write_atomically(tmp_path / ('a' * 300), 'text')


def test_leftovers(tmp_path):
    (tmp_path / '.acmix-mm-12-ab.tmp').touch()
    (tmp_path / 'epoch_1.pth').touch()
    remove_leftovers(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ['epoch_1.pth']
