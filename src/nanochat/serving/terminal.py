"""The chat in the terminal: `nanochat chat`."""

import contextlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from rich.console import Console

from nanochat.common import UserError
from nanochat.data.conversations import Conversation, Message
from nanochat.inference import Delta, Engine, SamplingParams, join_deltas

HELP = """\
/new               begin a new conversation (also /clear)
/retry             answer the last message again
/system TEXT       tell the model how to behave; without TEXT: no longer
/temperature X     0 is always the likeliest answer, 1 is lively
/save FILE         append the conversation to FILE (jsonl, ready to train on)
/quit              leave (also Ctrl-D); Ctrl-C stops an answer"""

# Control characters, which would let a model steer the terminal, are left out of what is printed.
CONTROL = dict.fromkeys({*range(32), *range(127, 160)} - {ord("\n"), ord("\t")})


def newest_model(runs: Path) -> Path:
    """Return the model folder that was trained last: of the newest run under `runs`, the chat model if it has one.

    Raises:
        UserError: if there is no trained model under `runs`.
    """
    trained: dict[Path, float] = {}
    for folder in (*runs.glob("*/rl"), *runs.glob("*/chat"), *runs.glob("*/base")):
        weights = list(folder.glob("model*.safetensors"))
        if weights and (folder / "config.json").is_file():
            trained[folder] = max(file.stat().st_mtime for file in weights)
    if not trained:
        raise UserError(
            f"there is no trained model under {runs}: name a model folder or a hub id, or train one "
            "(`nanochat speedrun`, or `make demo` in the project's folder)"
        )
    run = max(trained, key=trained.__getitem__).parent
    stages = [folder for folder in trained if folder.parent == run]
    return max(stages, key=lambda folder: (folder.name != "base", trained[folder]))


def chat(
    engine: Engine,
    *,
    params: SamplingParams,
    prompt: str | None = None,
    input_stream: TextIO | None = None,
    console: Console | None = None,
) -> None:
    """Talk with a model until the input ends; or, with a `prompt`, print the one answer to it and nothing else.

    On a terminal there are colours, a prompt and the calculator's work; where the output is no terminal (a pipe, a
    file), each line of the input is a message and only the answers are printed, all else goes to stderr.

    Args:
        params: How to answer. A seed counts for every answer; /retry takes the next one.
        prompt: The one message to answer.
        input_stream: Where messages come from, one a line; standard input by default, with line editing on a terminal.
        console: Where answers go; standard output by default.

    Raises:
        UserError: with `prompt`, if it doesn't fit into the model's context or the engine can't finish the answer.
    """
    console = console or Console(highlight=False)
    terminal = _Terminal(engine, params, input_stream or sys.stdin, console)
    if prompt is None:
        terminal.run()
    else:
        terminal.answer(Message(role="user", content=prompt))


class _Terminal:
    def __init__(self, engine: Engine, params: SamplingParams, lines: TextIO, console: Console) -> None:
        self.engine = engine
        self.params = params
        self.lines = lines
        self.console = console
        self.notes = console if console.is_terminal else Console(stderr=True, highlight=False)
        self.system: list[Message] = []
        self.messages: Conversation = []
        self.forgotten = 0  # messages at the front that have no room in the context any more

    def run(self) -> None:
        name = self.engine.model.name_or_path or "the model"
        if self.console.is_terminal:
            self.note(f"Talking with {name}. /help lists the commands, Ctrl-D leaves.")
        if Path(name).name == "base":
            self.note(
                "This is a base model: it continues text, but has not learnt to chat (`nanochat sft` teaches it)."
            )
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # gives input() line editing and history
        while (line := self.read()) is not None:
            try:
                if line.startswith("/"):
                    if not self.command(line):
                        return
                elif line:
                    self.answer(Message(role="user", content=line))
            except UserError as error:
                self.note(str(error), "red")

    def read(self) -> str | None:
        """Return the next line, or None at the end of the input."""
        while True:
            try:
                if self.lines is sys.stdin and sys.stdin.isatty() and self.console.is_terminal:
                    line = input("> ")
                elif not (line := self.lines.readline()):
                    return None
                # Bytes that are not UTF-8 come as lone surrogates, which no tokenizer takes.
                return line.encode("utf-8", "replace").decode("utf-8").strip()
            except EOFError:
                self.console.out("")
                return None
            except UnicodeDecodeError as error:
                raise UserError(f"the input is not UTF-8 text: {error}") from error
            except KeyboardInterrupt:
                if not self.console.is_terminal:
                    raise
                self.console.out("")
                self.note("Ctrl-D or /quit leaves.")

    def command(self, line: str) -> bool:
        """Do what a slash command says; return False where it says to leave."""
        name, _, rest = line.partition(" ")
        rest = rest.strip()
        match name:
            case "/help":
                self.note(HELP)
            case "/new" | "/clear":
                self.messages, self.forgotten = [], 0
                self.note("A new conversation.")
            case "/system":
                self.system = [Message(role="system", content=rest)] if rest else []
                self.note("Understood." if rest else "No system message any more.")
            case "/temperature":
                self.params = replace(self.params, temperature=_number(rest))
                self.note(f"Temperature {self.params.temperature:g}.")
            case "/retry":
                self.retry()
            case "/save":
                self.save(rest)
            case "/quit" | "/exit":
                return False
            case _:
                raise UserError(f"there is no command {name}: /help lists them")
        return True

    def retry(self) -> None:
        if not self.messages:
            raise UserError("there is nothing to answer again yet")
        if self.params.temperature == 0:
            self.note("At temperature 0 the answer is always the same; `/temperature 0.8` brings others.")
        if self.params.seed is not None:
            self.params = replace(self.params, seed=self.params.seed + 1)
        before = self.messages
        *self.messages, question, _ = before
        self.forgotten = min(self.forgotten, len(self.messages))
        try:
            self.answer(question)
        finally:
            if len(self.messages) < len(before):  # no new answer came: keep the old one
                self.messages = before

    def save(self, path: str) -> None:
        if not path or not self.messages:
            raise UserError("there is nothing to save yet" if path else "/save needs the name of a file")
        line = json.dumps({"messages": [*self.system, *self.messages]}, ensure_ascii=False)
        try:
            with open(Path(path).expanduser(), "a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise UserError(f"can't write to {path}: {error.strerror}") from error
        self.note(f"Appended to {path}.")

    def answer(self, question: Message) -> None:
        """Stream the answer and keep both; a question without an answer is forgotten."""
        forgotten, conversation = self.fitting(question)
        stream = self.engine.stream(conversation, self.params)
        if forgotten > self.forgotten:
            self.note("The context is full: the model has forgotten the oldest part of this conversation.")
            self.forgotten = forgotten
        deltas: list[Delta] = []
        printer = _Printer(self.console)
        try:
            for delta in stream:
                deltas.append(delta)
                printer.show(delta)
        except KeyboardInterrupt:
            if not self.console.is_terminal:
                raise
            printer.end()
            self.note("Stopped.")
        except RuntimeError as error:  # out of memory, damaged weights: the next question may be answered
            printer.end()
            raise UserError(f"the answer broke off: {error}") from error
        printer.end()
        if deltas and deltas[-1].finish_reason == "length":
            self.note("Cut off: the answer reached its limit of tokens or the end of the model's context.")
        content = join_deltas(deltas)
        if any(part["text"] for part in content):
            self.messages += [question, Message(role="assistant", content=content)]
        else:
            self.note("No answer.")

    def fitting(self, question: Message) -> tuple[int, Conversation]:
        """Return the conversation up to `question` with room for an answer, and how many old messages it leaves out."""
        context = self.engine.context_length
        limit = context - min(self.params.max_new_tokens, context // 4)
        forgotten = self.forgotten
        while True:
            conversation = [*self.system, *self.messages[forgotten:], question]
            if forgotten >= len(self.messages) or len(self.engine.encode(conversation)) <= limit:
                return forgotten, conversation
            forgotten += 2  # a question and its answer

    def note(self, text: str, style: str = "dim") -> None:
        self.notes.print(text, style=style, markup=False)


class _Printer:
    """Prints an answer as it comes; on a terminal with the calculator's work, dimmed, on lines of its own."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.part = -1
        self.at_line_start = True

    def show(self, delta: Delta) -> None:
        tool = delta.type != "text"
        text = delta.text.translate(CONTROL)
        if not text or (tool and not self.console.is_terminal):
            return
        if delta.part != self.part and self.console.is_terminal and self.part >= 0:
            if delta.type == "python_output":
                text = " = " + text
            elif not self.at_line_start:
                text = "\n" + text.lstrip(" \n")
        self.part = delta.part
        self.at_line_start = text.endswith("\n")
        if tool:
            self.console.out(text, end="", style="dim", highlight=False)
        else:  # the answer exactly as it is: rich would turn its tabs into blanks
            self.console.file.write(text)
            self.console.file.flush()

    def end(self) -> None:
        if not self.at_line_start:
            self.console.out("")
            self.at_line_start = True


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"/temperature needs a number, like 0.8, got {text!r}") from None
