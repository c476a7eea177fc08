import io
import json
import math
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scripted_model import ScriptedModel, byte_tokenizer

from nanochat.common import UserError
from nanochat.data.conversations import Conversation, check_conversation
from nanochat.inference import Engine, SamplingParams
from nanochat.serving.terminal import chat, newest_model

TOKENIZER = byte_tokenizer()
END, PYTHON, PYTHON_END = 260, 261, 262
PARAMS = SamplingParams(max_new_tokens=64)
CALL = [PYTHON, *b"37*24", PYTHON_END, *b"_____", *b"It is 888.", END]  # the engine writes 5 tokens over the blanks


def said(text: str) -> list[int]:
    return [*text.encode(), END]


def turns(*texts: str, system: str = "") -> Conversation:
    """A conversation of user and assistant in turn."""
    start: Conversation = [{"role": "system", "content": system}] if system else []
    return [*start, *({"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts))]  # type: ignore[list-item, misc]


def scripted(*scripts: tuple[Conversation, list[int]], model_class: Any = ScriptedModel, **options: Any) -> Engine:
    encode = Engine(ScriptedModel({}, context_length=10**6), TOKENIZER).encode
    return Engine(model_class({tuple(encode(asked)): answer for asked, answer in scripts}, **options), TOKENIZER)


def talk(engine: Engine, *lines: str, terminal: bool = True, params: SamplingParams = PARAMS) -> str:
    """What the chat prints; colours and the notes' line breaks removed."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=terminal, width=10_000, no_color=True, highlight=False)
    typed = io.StringIO("".join(line + "\n" for line in lines))
    chat(engine, params=params, input_stream=typed, console=console)
    return screen.getvalue().replace("\x1b[2m", "").replace("\x1b[0m", "")


def test_it_answers_and_remembers() -> None:
    engine = scripted((turns("Hi"), said("Hello!")), (turns("Hi", "Hello!", "Who?"), said("NanoChat.")))
    printed = talk(engine, "Hi", "", "  Who?  ")
    assert printed.splitlines()[1:] == ["Hello!", "NanoChat."]
    assert "/help" in printed.splitlines()[0]


def test_a_prompt_prints_the_answer_alone(capsys: pytest.CaptureFixture[str]) -> None:
    chat(scripted((turns("37*24?"), CALL)), params=PARAMS, prompt="37*24?")
    assert capsys.readouterr() == ("It is 888.\n", "")


def test_a_prompt_that_does_not_fit_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="the prompt has 104 tokens, but the model's context is 50"):
        chat(scripted(context_length=50), params=PARAMS, prompt="x" * 100)
    assert capsys.readouterr().out == ""


def test_piped_lines_give_answers_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = scripted((turns("37*24?"), CALL), (turns("Long"), said("é" * 40)))
    monkeypatch.setattr(sys, "stdin", io.StringIO("37*24?\n/new\n/what\nLong"))
    chat(engine, params=PARAMS)
    out, err = capsys.readouterr()
    assert out == "It is 888.\n" + "é" * 32 + "\n"
    assert "\x1b" not in out + err
    assert "there is no command /what" in err
    assert "Cut off" in err


def test_input_that_is_not_utf8_is_an_error() -> None:
    typed = io.TextIOWrapper(io.BytesIO(b"\xff\xfe\n"), encoding="utf-8")
    with pytest.raises(UserError, match="not UTF-8"):
        chat(scripted(), params=PARAMS, input_stream=typed, console=Console(file=io.StringIO()))


def test_the_calculators_work_is_shown_dimmed_on_its_own_line() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, color_system="standard", highlight=False)
    answer = [*b"Wait.", *CALL[:-1], PYTHON, *b"1/0", PYTHON_END, *b" Oh.", END]
    chat(scripted((turns("?"), answer)), params=PARAMS, prompt="?", console=console)
    plain = screen.getvalue().replace("\x1b[2m", "").replace("\x1b[0m", "")
    assert plain == "Wait.\n37*24 = 888\nIt is 888.\n1/0\nOh.\n"
    assert "\x1b[2m7\x1b[0m" in screen.getvalue()
    assert "\x1b[2mI\x1b[0m" not in screen.getvalue()


def test_calls_are_remembered_as_parts() -> None:
    parts = [("python", "37*24"), ("python_output", "888"), ("text", "It is 888.")]
    answer = {"role": "assistant", "content": [{"type": type, "text": text} for type, text in parts]}
    later: Any = [*turns("?"), answer, *turns("Sure?")]
    assert talk(scripted((turns("?"), CALL), (later, said("Yes."))), "?", "Sure?").endswith("Yes.\n")


def test_a_model_can_not_steer_the_terminal() -> None:
    printed = talk(scripted((turns("?"), said("a\x1b[31mb\x07\x9bc\r\td\n👩‍🚀"))), "?")
    assert printed.endswith("\na[31mbc\td\n👩‍🚀\n")


def test_ctrl_c_stops_the_answer_and_not_the_program() -> None:
    class Interrupted(ScriptedModel):
        def _next(self, ids: list[int]) -> int:
            if ids[-2:] == list(b"Wa"):
                raise KeyboardInterrupt
            return super()._next(ids)

    scripts = (turns("Hi"), said("Wait")), (turns("Hi", "Wa", "Go on"), said("Done."))
    printed = talk(scripted(*scripts, model_class=Interrupted), "Hi", "Go on")
    assert printed.splitlines()[1:] == ["Wa", "Stopped.", "Done."]
    with pytest.raises(KeyboardInterrupt):  # in a pipe it ends the program
        talk(scripted(*scripts, model_class=Interrupted), "Hi", terminal=False)


def test_an_answer_that_breaks_off_is_an_error_and_the_next_is_given() -> None:
    class Broken(ScriptedModel):
        def _next(self, ids: list[int]) -> int:
            if ids[-2:] == list(b"Wa"):
                raise MemoryError("no memory")
            return super()._next(ids)

    scripts = (turns("Hi"), said("Wait")), (turns("Ho"), said("Done."))
    printed = talk(scripted(*scripts, model_class=Broken), "Hi", "Ho")
    assert printed.splitlines()[1:] == ["Wa", "the answer broke off: MemoryError: no memory", "Done."]
    with pytest.raises(UserError, match="the answer broke off: MemoryError: no memory"):
        chat(scripted(*scripts, model_class=Broken), params=PARAMS, prompt="Hi")


def test_a_question_without_an_answer_is_forgotten() -> None:
    printed = talk(scripted((turns("Hi"), [END]), (turns("Ho"), said("Hm"))), "Hi", "Ho")
    assert printed.splitlines()[1:] == ["No answer.", "Hm"]


def test_new_and_system_and_quit() -> None:
    engine = scripted(
        (turns("Hi"), said("1")),
        (turns("Hi", system="Be kind."), said("2")),
        (turns("Hi", "2", "Hi", system="Be kind."), said("3")),
        (turns("Hi", "2", "Hi", "3", "Hi"), said("4")),
    )
    lines = ["Hi", "/new", "/system  Be kind.", "Hi", "Hi", "/system", "Hi", "/clear", "Hi", "/quit", "Hi"]
    printed = [line for line in talk(engine, *lines).splitlines() if len(line) == 1]
    assert printed == ["1", "2", "3", "4", "1"]


def test_temperature_and_retry() -> None:
    engine = scripted((turns("Hi"), said("Hello")), second_choice=33)
    printed = talk(
        engine,
        "/retry",
        "Hi",
        "/retry",
        "/temperature 900",
        "/retry",
        "/retry",
        "/temperature x",
        params=SamplingParams(max_new_tokens=20, seed=1),
    )
    lines = printed.splitlines()
    assert lines[1:5] == [
        "there is nothing to answer again yet",
        "Hello",
        "At temperature 0 the answer is always the same; `/temperature 0.8` brings others.",
        "Hello",
    ]
    assert "Temperature 900." in lines
    assert lines[-1] == "/temperature needs a number, like 0.8, got 'x'"
    wild = printed[printed.index("900.") :]
    assert "Hello" not in wild


def test_a_retry_that_fails_keeps_the_old_answer() -> None:
    class Once(ScriptedModel):
        calls = 0

        def _next(self, ids: list[int]) -> int:
            Once.calls += 1
            if Once.calls == 4:  # "A", end; "B", end of the second turn's: here
                raise KeyboardInterrupt
            return super()._next(ids)

    engine = scripted((turns("Hi"), said("A")), (turns("Hi", "A", "Ho"), said("B")), model_class=Once)
    printed = talk(engine, "Hi", "/retry", "/retry", "Ho")
    assert printed.splitlines()[-1] == "B"


def test_save_appends_conversations_that_can_be_trained_on(tmp_path: Path) -> None:
    file = tmp_path / "chats.jsonl"
    engine = scripted((turns("37*24?", system="Go."), CALL), (turns("Hé", system="Go."), said("Ho")))
    lines = ["/save x", "/save", "/system Go.", "37*24?", f"/save {file}", "/new", "Hé", f"/save {file}"]
    printed = talk(engine, *lines, f"/save {tmp_path}/no/where")
    saved = [json.loads(line)["messages"] for line in file.read_text(encoding="utf-8").splitlines()]
    for messages in saved:
        check_conversation(messages, "saved")
    assert [len(messages) for messages in saved] == [3, 3]
    assert saved[1][1] == {"role": "user", "content": "Hé"}
    assert "there is nothing to save yet" in printed
    assert "/save needs the name of a file" in printed
    assert "can't write to" in printed


def test_a_full_context_forgets_the_oldest_turns_but_saves_them(tmp_path: Path) -> None:
    # <|bos|> and <|assistant_start|>, 7 tokens for each message; a quarter of the context stays free for the answer.
    engine = scripted(
        (turns("Q1___"), said("A1___")),
        (turns("Q1___", "A1___", "Q2___"), said("A2___")),
        (turns("Q2___", "A2___", "Q3___"), said("A3___")),
        context_length=48,
    )
    params = SamplingParams(max_new_tokens=20)
    file = tmp_path / "all.jsonl"
    printed = talk(engine, "Q1___", "Q2___", "Q3___", f"/save {file}", "x" * 60, params=params)
    assert printed.splitlines()[1:5] == [
        "A1___",
        "A2___",
        "The context is full: the model has forgotten the oldest part of this conversation.",
        "A3___",
    ]
    assert len(json.loads(file.read_text())["messages"]) == 6
    assert printed.splitlines()[-1].startswith("the prompt has 64 tokens")  # and nothing was forgotten for it


def test_help_names_every_command_and_unknown_ones_are_refused() -> None:
    printed = talk(scripted(), "/help", "/nope")
    for command in ("/new", "/clear", "/retry", "/system", "/temperature", "/save", "/quit"):
        assert command in printed
    assert "there is no command /nope: /help lists them" in printed


def test_a_base_model_is_called_one() -> None:
    engine = scripted()
    engine.model.name_or_path = "runs/demo/base"  # type: ignore[assignment]
    assert "This is a base model" in talk(engine)
    assert "This is a base model" not in talk(scripted())


REAL = """
import sys, time
sys.path.append(sys.argv[1])
from scripted_model import ScriptedModel, byte_tokenizer
from nanochat.inference import Engine, SamplingParams
from nanochat.serving.terminal import chat
class Slow(ScriptedModel):
    def _next(self, ids):
        time.sleep(0.02)
        return 97
engine = Engine(Slow({}, context_length=100_000), byte_tokenizer())
chat(engine, params=SamplingParams(max_new_tokens=10_000))
print("left well")
"""


def test_on_a_real_terminal_ctrl_c_stops_and_ctrl_d_leaves() -> None:
    controller, terminal = pty.openpty()
    scripts = str(Path(__file__).parents[1] / "inference")
    process = subprocess.Popen(
        [sys.executable, "-c", REAL, scripts],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # makes it the controlling terminal
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(terminal)
    shown = ""

    def wait_for(text: str, press: bytes = b"") -> None:
        """Press the key, and again every 5 seconds, as people do: an interrupt can get lost in a destructor."""
        nonlocal shown
        deadline = time.monotonic() + 60
        pressed = -math.inf
        while text not in shown:
            assert time.monotonic() < deadline, shown
            if press and time.monotonic() > pressed + 5:
                os.write(controller, press)
                pressed = time.monotonic()
            if select.select([controller], [], [], 1)[0]:
                shown += os.read(controller, 4096).decode(errors="replace")
        shown = shown[shown.index(text) + len(text) :]

    try:
        wait_for("> ")
        os.write(controller, b"Hi\n")
        wait_for("aaaa")
        wait_for("Stopped.", press=b"\x03")
        wait_for("> ")
        os.write(controller, b"half a line")
        wait_for("/quit leaves", press=b"\x03")
        wait_for("> ")
        os.write(controller, b"\x04")
        wait_for("left well")
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(controller)


def model_folder(path: Path, age: float) -> Path:
    path.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (path / name).write_text("{}")
        os.utime(path / name, (1e9 - age, 1e9 - age))
    return path


def test_the_newest_runs_chat_model_is_found(tmp_path: Path) -> None:
    model_folder(tmp_path / "old" / "chat", age=100)
    base = model_folder(tmp_path / "new" / "base", age=10)
    assert newest_model(tmp_path) == base
    chat_model = model_folder(tmp_path / "new" / "chat", age=20)
    assert newest_model(tmp_path) == chat_model
    rl = model_folder(tmp_path / "new" / "rl", age=15)
    assert newest_model(tmp_path) == rl
    (tmp_path / "newest" / "chat").mkdir(parents=True)  # begun, but there is no model in it yet
    assert newest_model(tmp_path) == rl


@pytest.mark.parametrize("runs", ["runs", "missing/runs"])
def test_without_a_model_it_says_how_to_get_one(tmp_path: Path, runs: str) -> None:
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match=r"no trained model under .*runs.*`nanochat speedrun`.*`make demo`"):
        newest_model(tmp_path / runs)
