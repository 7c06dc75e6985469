"""Descriptors that one task closes while another reads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from asyncfetch.errors import SourceError
from asyncfetch.tensors.descriptors import Descriptor


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"these bytes")
    return path


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def test_the_last_reader_closes_it(file: Path) -> None:
    """Closed under two readers it stays open for both, and nobody begins to read any more."""
    number = os.open(file, os.O_RDONLY)
    descriptor = Descriptor(number, "stream")
    with descriptor as first:
        with descriptor as second:
            descriptor.close()
            descriptor.close()
            with pytest.raises(SourceError, match="The stream is closed"), descriptor:
                raise AssertionError("entered")
            assert first == second == number
        assert os.pread(number, 5, 0) == b"these"
    assert not is_open(number)


def test_its_owner_closes_it(file: Path) -> None:
    """Where nobody reads, at once; and never a second time, when the number is another file's."""
    number = os.open(file, os.O_RDONLY)
    descriptor = Descriptor(number, "stream")
    with descriptor:
        pass
    assert is_open(number)
    descriptor.close()
    assert not is_open(number)
    other = os.open(file, os.O_RDONLY)
    assert other == number
    descriptor.close()
    assert is_open(other)
    os.close(other)
