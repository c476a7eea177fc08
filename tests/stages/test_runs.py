"""A run's folder: its lock, its recipe, its stores."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from nanochat.common import UserError
from nanochat.stages.run import Run
from nanochat.training.recipe import Recipe

RECIPE = Recipe.from_depth(1, 400, dtype="float32")


def hold(folder: Path) -> subprocess.Popen:
    """Another process that has locked the folder."""
    code = "import sys; from filelock import FileLock\nwith FileLock(sys.argv[1]): print('held', flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder / ".lock")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    return process


def test_a_locked_folder_is_refused_until_its_process_ends(tmp_path):
    run = Run(tmp_path)
    process = hold(tmp_path)
    with pytest.raises(UserError, match=f"Another process is training in {tmp_path}.*--run"), run.locked():
        pass
    process.kill()  # not even a chance to clean up
    process.wait()
    with run.locked():
        pass


def test_the_lock_is_held_inside_and_given_back_at_the_end(tmp_path):
    run = Run(tmp_path / "new" / "run")
    other = FileLock(tmp_path / "new" / "run" / ".lock")
    with pytest.raises(ZeroDivisionError), run.locked():
        with Run(tmp_path / "new" / "run").locked():  # a stage within the speedrun
            pass
        with pytest.raises(TimeoutError):
            other.acquire(timeout=0)
        raise ZeroDivisionError
    other.acquire(timeout=0)
    other.release()


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is a file; --run names a folder"), Run(tmp_path / "file").locked():
        pass


def test_recipes_of_both_stages_are_kept(tmp_path):
    run = Run(tmp_path)
    assert not run.is_begun("base")
    run.save_recipe("base", RECIPE, data="a.txt")
    other = Recipe.from_depth(2, 500, dtype="float32")
    run.save_recipe("chat", other, data="b.jsonl", model=None)
    assert run.load_recipe("base") == (RECIPE, {"data": "a.txt"})
    assert run.load_recipe("chat") == (other, {"data": "b.jsonl", "model": None})
    assert run.is_begun("base") and run.is_begun("chat") and not run.is_complete("base")
    assert set(json.loads((tmp_path / "recipe.json").read_text())) == {"base", "chat"}


def test_a_stage_that_never_began_is_not_resumed(tmp_path):
    with pytest.raises(UserError, match=r"nothing to resume.*'base'"):
        Run(tmp_path).load_recipe("base")


@pytest.mark.parametrize("content", ["", "nonsense", "[1]", '{"base": []}', '{"base": {"recipe": {"depth": 1}}}'])
def test_a_damaged_recipe_is_named(tmp_path, content):
    (tmp_path / "recipe.json").write_text(content)
    with pytest.raises(UserError, match=r"recipe\.json is damaged.*--run"):
        Run(tmp_path).load_recipe("base")


def test_an_impossible_recipe_is_named(tmp_path):
    run = Run(tmp_path)
    run.save_recipe("base", RECIPE, data="a.txt")
    edited = json.loads((tmp_path / "recipe.json").read_text())
    edited["base"]["recipe"]["seq_len"] = -5
    (tmp_path / "recipe.json").write_text(json.dumps(edited))
    with pytest.raises(UserError, match="seq_len must be at least 1, got -5"):
        run.load_recipe("base")


def test_a_stage_that_was_begun_is_not_begun_again(tmp_path):
    run = Run(tmp_path)
    run.check_new("base")
    run.stage("base").mkdir()
    with pytest.raises(UserError, match="was begun before; go on with --resume"):
        run.check_new("base")
