import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from toy_data import pretrain_options, sft_options

from nanochat.stages.pretrain import pretrain
from nanochat.stages.sft import sft


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """The models here are so small that threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    pretrain(pretrain_options(folder))
    sft(sft_options(folder))
    return folder


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> Path:
    """A folder with corpus, chats and a run whose both stages are complete; to do with as one likes."""
    return Path(shutil.copytree(finished_once, tmp_path / "finished"))
