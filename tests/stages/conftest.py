import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from toy_data import pretrain_options, sft_options

from nanochat.stages.pretrain import pretrain
from nanochat.stages.sft import sft
from nanochat.training.loop import TrainingLoop


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


@pytest.fixture
def interrupt_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], Callable[[], None]]:
    """Ctrl-C in a step of a stage: `interrupt_at("base", 3)`; what that returns undoes it."""

    def install(stage: str, step: int) -> Callable[[], None]:
        run = TrainingLoop.run

        def interrupted(loop: TrainingLoop) -> None:
            begin = loop.train_step.begin

            def begin_interrupted(number, *arguments):
                if loop.stage == stage and number == step:
                    os.kill(os.getpid(), signal.SIGINT)
                return begin(number, *arguments)

            loop.train_step.begin = begin_interrupted
            run(loop)

        monkeypatch.setattr(TrainingLoop, "run", interrupted)
        return lambda: monkeypatch.setattr(TrainingLoop, "run", run)

    return install
