"""Writes that are whole or absent, whatever happens in their middle."""

import os

import pytest

from nanochat.common import UserError, atomic_file, atomic_folder


def test_a_users_mistake_is_a_value_error():
    assert issubclass(UserError, ValueError)


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "new" / "file.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")
    assert path.read_text() == "whole" and os.listdir(path.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_file_that_fails_leaves_the_one_before(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("before")
    with pytest.raises(error), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["file.txt"]


def test_a_folder_replaces_the_one_before(tmp_path):
    path = tmp_path / "folder"
    for content in ("one", "two"):
        with atomic_folder(path) as temporary:
            (temporary / content).write_text(content)
    assert os.listdir(path) == ["two"] and os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_folder_that_fails_leaves_the_one_before(tmp_path, error):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "before").touch()
    with pytest.raises(error), atomic_folder(path) as temporary:
        (temporary / "half").touch()
        raise error
    assert os.listdir(path) == ["before"] and os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_between_the_two_renames_gives_the_old_folder_back(tmp_path, monkeypatch, error):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "before").touch()
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise error
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(error), atomic_folder(path) as temporary:
        (temporary / "after").touch()
    assert os.listdir(path) == ["before"] and os.listdir(tmp_path) == ["folder"]
