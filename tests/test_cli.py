"""The command line as its users meet it: exit codes, what goes to stdout, and one clear sentence for every mistake."""

import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from nanochat.cli import VERBS, main

SIZES = {"depth": 1, "vocab_size": 320, "seq_len": 64, "tokens": 6400, "batch_tokens": 640, "dtype": "float32"}
TOY = [text for name, value in SIZES.items() for text in (f"--{name.replace('_', '-')}", str(value))]
NANOCHAT = [sys.executable, "-c", "from nanochat.cli import main; main()"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@dataclass
class Done:
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def nanochat(monkeypatch, capsys):
    """Run `nanochat ARGUMENTS` in this process; anything that would be a traceback fails the test."""
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["nanochat", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder with `corpus.jsonl` and `chats.jsonl`."""
    folder = tmp_path_factory.mktemp("data")
    animals, places, verbs = ("fox", "hen", "owl", "cat"), ("barn", "field", "wood"), ("sleeps", "eats", "sings")
    texts, chats = [], []
    for number, (animal, place, verb) in enumerate(itertools.product(animals, places, verbs)):
        for part in range(6):
            text = f"{number}, {part}: the {animal} {verb} in the {place}. The {place} is quiet, the {animal} is not."
            texts.append({"text": text * 3})
        answer = {"role": "assistant", "content": f"It {verb}."}
        chats.append({"messages": [{"role": "user", "content": f"What does the {animal} do in the {place}?"}, answer]})
    (folder / "corpus.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    (folder / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return folder


@pytest.fixture(scope="module")
def trained_once(corpus, tmp_path_factory):
    from nanochat.stages.options import PretrainOptions, SftOptions
    from nanochat.stages.pretrain import pretrain
    from nanochat.stages.sft import sft

    run = tmp_path_factory.mktemp("trained") / "run"
    pretrain(PretrainOptions(data=str(corpus / "corpus.jsonl"), run=run, **SIZES))
    sft(SftOptions(data=str(corpus / "chats.jsonl"), run=run, batch_tokens=640, dtype="float32"))
    return run


@pytest.fixture
def trained(trained_once, tmp_path):
    """A run whose both stages are complete; to do with as one likes."""
    return Path(shutil.copytree(trained_once, tmp_path / "trained"))


# ------------------------------------------------------------------------------------------------ help and start-up


def test_help_names_every_verb(nanochat):
    done = nanochat("--help")
    assert done.code == 0
    assert all(verb in done.out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_every_option(nanochat, verb):
    done = nanochat(*verb.split(), "--help")
    assert done.code == 0 and "usage: nanochat" in done.out
    assert not re.search(r"--[\w-]+ [A-Z|]+ +\((default|required)", done.out), done.out


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys, time; begun = time.perf_counter(); sys.argv = ['nanochat', '--help']\n"
        "from nanochat.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'matplotlib', 'pyarrow', 'tokenizers'} & set(sys.modules)\n"
        "print(time.perf_counter() - begun, heavy or '', file=sys.stderr)"
    )
    attempts = []
    for _ in range(3):  # the machine may be busy: the quickest counts
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
        seconds, _, heavy = done.stderr.strip().partition(" ")
        assert not heavy, heavy
        attempts.append(float(seconds))
    assert min(attempts) < 0.5


# --------------------------------------------------------------------------------------------------- the good way


def test_pretrain_sft_chat_evaluate(nanochat, corpus, tmp_path):
    run = tmp_path / "läufe und [bold]mehr :cat:" / "nano chat"
    done = nanochat("pretrain", "--data", corpus / "corpus.jsonl", "--run", run, *TOY)
    assert done.code == 0, done.err
    assert str(run / "base") in done.out and "parameters" in done.out
    done = nanochat("sft", "--data", corpus / "chats.jsonl", "--run", run, "--batch-tokens", 640)
    assert done.code == 0, done.err
    assert str(run / "chat") in done.out
    names = {path.name for path in run.iterdir() if not path.name.startswith(".")}
    assert names == {"recipe.json", "tokenizer", "data", "base", "chat", "metrics.jsonl"}
    for stage in ("base", "chat"):
        files = {path.name for path in (run / stage).iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= files
        assert "checkpoints" not in files
    done = nanochat("chat", run / "chat", "--prompt", "What does the fox do?", "--max-new-tokens", 4)
    assert done.code == 0, done.err


def test_the_prompts_answer_is_all_that_is_on_stdout(nanochat, trained):
    from nanochat.inference.engine import Engine
    from nanochat.inference.sampling import SamplingParams

    question = "What does the fox do in the barn?"
    engine = Engine.from_pretrained(trained / "chat")
    [expected] = engine.generate([[{"role": "user", "content": question}]], SamplingParams(max_new_tokens=6))
    done = nanochat("chat", trained / "chat", "--prompt", question, "--max-new-tokens", 6)
    assert done.code == 0
    assert done.out.strip("\n") == expected.text.strip("\n")


def test_a_sampled_answer_repeats_with_its_seed(nanochat, trained):
    command = ["chat", trained / "chat", "--prompt", "Hi", "--temperature", 1.5, "--max-new-tokens", 12]
    first, again, other = (nanochat(*command, "--seed", seed).out for seed in (3, 3, 4))
    assert first == again != other


def test_without_a_model_the_newest_one_answers(nanochat, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "runs" / "mine")
    named = nanochat("chat", trained / "chat", "--prompt", "Hi", "--max-new-tokens", 4)
    done = nanochat("chat", "--prompt", "Hi", "--max-new-tokens", 4)
    assert (done.code, done.out) == (0, named.out)


def test_evaluate_scores_every_skill(nanochat, trained, tmp_path):
    from nanochat.checkpoints.folder import save_model
    from nanochat.data.primer import SKILLS
    from nanochat.model.configuration import NanoChatConfig
    from nanochat.model.modeling import NanoChatForCausalLM
    from nanochat.tokenizer import NanoChatTokenizer

    tokenizer = NanoChatTokenizer.from_pretrained(trained / "tokenizer")
    config = NanoChatConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16
    )  # with a context that takes the longest question
    save_model(NanoChatForCausalLM(config), tokenizer, tmp_path / "model")
    done = nanochat("evaluate", tmp_path / "model", "--questions", 1)
    assert done.code == 0, done.err
    scores = dict(re.findall(r"^(\w+) +([01]\.\d+)$", done.out, re.M))
    assert list(scores) == [*SKILLS, "average"]
    assert float(scores.pop("average")) == pytest.approx(sum(map(float, scores.values())) / len(SKILLS), abs=1e-3)


def test_print_recipe_shows_all_and_touches_nothing(nanochat, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = nanochat("pretrain", "--data", "no such text", "--depth", 20, "--vocab-size", 65536, "--print-recipe")
    assert done.code == 0 and not list(tmp_path.iterdir())
    for part in ("20 layers, width 1280", "561 M", "FLOPs", "peak", "about", "8 x H100", "give --price-per-hour"):
        assert part in done.out, part
    done = nanochat("pretrain", "--depth", 2, "--print-recipe", "--price-per-hour", 1.5)
    assert done.code == 0 and re.search(r"cost +\$[\d.]+", done.out)


def test_print_recipe_goes_by_the_tokenizer_of_the_run(nanochat, trained):
    done = nanochat("pretrain", "--run", trained, "--depth", 1, "--vocab-size", 4096, "--print-recipe")
    assert done.code == 0 and "vocabulary 320\n" in done.out


def test_compare_draws_runs_and_refuses_what_is_none(nanochat, trained, tmp_path):
    page = tmp_path / "page.html"
    done = nanochat("compare", trained, trained, "--out", page, "--price-per-hour", 2)
    assert done.code == 0, done.err
    assert str(page) in done.out and "bits per byte" in page.read_text()
    assert_refused(nanochat("compare", tmp_path / "nowhere", "--out", page), "nowhere is not the folder of a run")
    assert nanochat("compare").code == 2


def test_primer_shows_samples_of_every_skill(nanochat):
    from nanochat.data.primer import SKILLS

    done = nanochat("primer")
    assert done.code == 0 and all(name in done.out for name in SKILLS)
    assert nanochat("primer", "--seed", 0).out == done.out != nanochat("primer", "--seed", 1).out


def test_tokenizer_train(nanochat, corpus, tmp_path):
    from transformers import AutoTokenizer

    out = tmp_path / "my tokenizer"
    done = nanochat("tokenizer", "train", out, "--data", corpus / "corpus.jsonl", "--vocab-size", 300)
    assert done.code == 0, done.err
    assert str(out) in done.out and "300" in done.out and "English" in done.out
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert len(tokenizer) == 300 and type(tokenizer).__name__ == "NanoChatTokenizer"
    again = tmp_path / "again"
    nanochat("tokenizer", "train", again, "--data", corpus / "corpus.jsonl", "--vocab-size", 300)
    assert (again / "tokenizer.json").read_bytes() == (out / "tokenizer.json").read_bytes()
    done = nanochat("tokenizer", "train", out, "--data", corpus / "corpus.jsonl", "--vocab-size", 300)
    assert done.code == 2 and "exists already" in done.err


def test_convert_there_and_back(nanochat, trained, tmp_path):
    from safetensors.torch import load_file

    original, back = tmp_path / "original", tmp_path / "back"
    done = nanochat("convert", trained / "chat", original, "--to", "original", "--step", 77)
    assert (done.code, done.out.strip()) == (0, str(original)), done.err
    assert (original / "model_000077.pt").is_file() and (original / "meta_000077.json").is_file()
    done = nanochat("convert", original, back)
    assert done.code == 0, done.err
    before, after = (load_file(folder / "model.safetensors") for folder in (trained / "chat", back))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    answers = [
        nanochat("chat", folder, "--prompt", "What does the hen do?", "--max-new-tokens", 5).out
        for folder in (trained / "chat", back)
    ]
    assert answers[0] == answers[1]


# ---------------------------------------------------------------------------------------------------- mistakes


@pytest.fixture(scope="module")
def mistakes(corpus):
    """The corpus folder with all kinds of broken data beside the good."""
    good = (corpus / "corpus.jsonl").read_text().splitlines()
    contents = {
        "empty.txt": b"",
        "blank.txt": b"\n \n\t\n",
        "one.txt": b"There is only one document here.",
        "latin1.txt": "Grüße\nund mehr".encode("latin-1"),
        "empty.jsonl": b"",
        "broken.jsonl": "\n".join([good[0], "{nonsense", good[1]]).encode(),
        "no-text.jsonl": b'{"text": "fine"}\n{"body": "not fine"}\n',
        "number.jsonl": b'{"text": "fine"}\n{"text": 7}\n',
        "list.jsonl": b'["text"]\n',
        "latin1.jsonl": b'{"text": "fine"}\n' + '{"text": "Grüße"}\n'.encode("latin-1"),
        "not.parquet": b"PAR1 but not really",
        "data.docx": b"something",
        "roles.jsonl": json.dumps({"messages": [{"role": "assistant", "content": "Hi"}]}).encode(),
        "strings.jsonl": json.dumps({"messages": "Hi"}).encode(),
        "unanswered.jsonl": json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode(),
    }
    for name, content in contents.items():
        (corpus / name).write_bytes(content)
    (corpus / "empty-folder").mkdir()
    return corpus


PRETRAIN_DATA = {
    "nowhere.txt": "no file or folder.*nowhere.txt",
    "empty.txt": "empty.txt is empty",
    "blank.txt": "blank.txt.*blank",
    "one.txt": "one document only",
    "latin1.txt": "latin1.txt line 1.*UTF-8",
    "empty.jsonl": "empty.jsonl is empty",
    "broken.jsonl": "broken.jsonl line 2.*JSON",
    "no-text.jsonl": "no-text.jsonl line 2.*text",
    "number.jsonl": "number.jsonl line 2.*string",
    "list.jsonl": "list.jsonl line 1",
    "latin1.jsonl": "latin1.jsonl line 2.*UTF-8",
    "not.parquet": "not.parquet",
    "data.docx": "data.docx has an unknown ending",
    "empty-folder": "empty-folder",
}


@pytest.mark.parametrize("name", PRETRAIN_DATA)
@pytest.mark.parametrize("verb", ["pretrain", "tokenizer train"])
def test_bad_text_is_named(nanochat, mistakes, tmp_path, name, verb):
    where = ["--run", tmp_path / "run", *TOY] if verb == "pretrain" else [tmp_path / "out", "--vocab-size", 300]
    done = nanochat(*verb.split(), "--data", mistakes / name, *where)
    assert_refused(done, PRETRAIN_DATA[name])
    assert not (tmp_path / "out").exists() and not (tmp_path / "run" / "base").exists()


CHAT_DATA = {
    "nowhere.jsonl": "no file or folder.*nowhere.jsonl",
    "empty.jsonl": "empty.jsonl is empty",
    "blank.txt": "plain text",
    "broken.jsonl": "broken.jsonl line",
    "corpus.jsonl": "corpus.jsonl line 1.*not conversations",
    "roles.jsonl": "roles.jsonl line 1.*role",
    "strings.jsonl": "strings.jsonl line 1.*list of messages",
    "unanswered.jsonl": "unanswered.jsonl line 1.*assistant",
    "empty-folder": "empty-folder",
}


@pytest.mark.parametrize("name", CHAT_DATA)
def test_bad_conversations_are_named(nanochat, mistakes, trained, name):
    shutil.rmtree(trained / "chat")
    recipe = json.loads((trained / "recipe.json").read_text())
    del recipe["chat"]
    (trained / "recipe.json").write_text(json.dumps(recipe))
    assert_refused(nanochat("sft", "--data", mistakes / name, "--run", trained), CHAT_DATA[name])
    assert not (trained / "chat").exists()


@pytest.mark.parametrize("name", ["nowhere.jsonl", "broken.jsonl", "roles.jsonl", "blank.txt"])
def test_the_speedrun_reads_the_chats_before_it_trains(nanochat, mistakes, tmp_path, name):
    run = tmp_path / "run"
    done = nanochat("speedrun", "--data", mistakes / "corpus.jsonl", "--chat", mistakes / name, "--run", run)
    assert_refused(done, CHAT_DATA[name])
    assert not (run / "tokenizer").exists()


def assert_refused(done, pattern):
    """Exit code 2, and the reason in one line, or in tyro's frame."""
    assert done.code == 2
    assert "Traceback" not in done.err
    if done.err.startswith("nanochat: "):
        assert re.search(pattern, done.err.removeprefix("nanochat: ")), done.err
        assert done.err.count("\n") == 1, done.err
    else:
        assert re.search(pattern, " ".join(done.err.replace("│", "").split())), done.err


PRETRAIN_VALUES = [
    ("--depth 0", "depth must be at least 1, got 0"),
    ("--depth -2", "depth must be at least 1, got -2"),
    ("--depth 1.5", "depth.*1.5"),
    ("--depth many", "depth.*many"),
    ("--seq-len 0", "seq_len must be at least 1, got 0"),
    ("--tokens 0", "tokens must be at least 1, got 0"),
    ("--tokens -5", "tokens must be at least 1, got -5"),
    ("--batch-tokens 0", "batch_tokens must be at least 1, got 0"),
    ("--batch-tokens 100", "batch_tokens must be a multiple of seq_len = 64.*got 100; try 128"),
    ("--micro-batch-tokens -1", "micro_batch_tokens must be at least 1, got -1"),
    ("--vocab-size 0", "vocab_size must be at least 1, got 0"),
    ("--vocab-size 100", "vocab_size must be at least 265.*got 100"),
    ("--matrix-lr -1", "matrix_lr must be a number of at least 0, got -1"),
    ("--matrix-lr nan", "matrix_lr.*nan"),
    ("--embedding-lr inf", "embedding_lr.*inf"),
    ("--weight-decay -0.1", "weight_decay.*-0.1"),
    ("--dtype float16", "dtype must be.*float16"),
    ("--seed -1", "seed must be.*-1"),
    ("--speed 3", "--speed"),
    ("extra", "extra"),
    ("--resume", "leave out --data"),
    ("--track tensorboard", "--track takes trackio or wandb, got 'tensorboard'"),
    ("--price-per-hour 3", "--price-per-hour is for the cost that --print-recipe shows"),
    ("--print-recipe --depth 0", "depth must be at least 1, got 0"),
    ("--print-recipe --price-per-hour -1", "price_per_hour must be .* got -1"),
]


@pytest.mark.parametrize(("options", "pattern"), PRETRAIN_VALUES, ids=[options for options, _ in PRETRAIN_VALUES])
def test_impossible_pretraining_is_refused_before_anything_is_made(nanochat, corpus, tmp_path, options, pattern):
    run = tmp_path / "run"
    done = nanochat("pretrain", "--data", corpus / "corpus.jsonl", "--run", run, "--seq-len", 64, *options.split())
    assert_refused(done, pattern)
    assert not (run / "tokenizer").exists() and not (run / "base").exists()


def test_a_row_longer_than_the_text_is_refused(nanochat, mistakes, tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("A few words.\n\n<|endoftext|>\n\nAnd a few more.\n")
    done = nanochat("pretrain", "--data", text, "--run", tmp_path / "run", "--depth", 1, "--vocab-size", 300)
    assert_refused(done, "tokens, but one row takes.*more text or a shorter --seq-len")


SFT_VALUES = [
    ("--epochs 0", "epochs must be at least 1, got 0"),
    ("--epochs -1", "epochs must be at least 1, got -1"),
    ("--tokens 0", "tokens must be at least 1, got 0"),
    ("--tokens -7", "tokens must be at least 1, got -7"),
    ("--batch-tokens 0", "batch_tokens must be at least 1, got 0"),
    ("--batch-tokens 100", "multiple of seq_len = 64"),
    ("--micro-batch-tokens 0", "micro_batch_tokens must be at least 1, got 0"),
    ("--lr-fraction -1", "lr_fraction.*-1"),
    ("--lr-fraction nan", "lr_fraction.*nan"),
    ("--dtype int8", "dtype must be.*int8"),
    ("--seed -1", "seed must be.*-1"),
    ("--model nowhere/at/all", "nowhere/at/all"),
    ("--resume", "leave out --data"),
]


@pytest.mark.parametrize(("options", "pattern"), SFT_VALUES, ids=[options for options, _ in SFT_VALUES])
def test_impossible_tuning_is_refused(nanochat, corpus, trained, tmp_path, options, pattern):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copytree(trained / "base", run / "base")
    assert_refused(nanochat("sft", "--data", corpus / "chats.jsonl", "--run", run, *options.split()), pattern)
    assert not (run / "chat").exists()


SPEEDRUN_VALUES = [
    ("--depth 0", "depth must be at least 1"),
    ("--chat-tokens -1", "tokens must be at least 1, got -1"),
    ("--chat-epochs 0", "epochs must be at least 1, got 0"),
    ("--vocab-size 3", "vocab_size must be at least 265"),
]


@pytest.mark.parametrize(("options", "pattern"), SPEEDRUN_VALUES, ids=[options for options, _ in SPEEDRUN_VALUES])
def test_impossible_speedruns_are_refused_before_anything_is_made(nanochat, tmp_path, options, pattern):
    run = tmp_path / "run"
    assert_refused(nanochat("speedrun", "--run", run, *options.split()), pattern)
    assert not (run / "tokenizer").exists()


CHAT_VALUES = [
    ("--max-new-tokens 0", "max_new_tokens.*0"),
    ("--temperature -1", "temperature.*-1"),
    ("--temperature nan", "temperature.*nan"),
    ("--top-k 0", "top_k.*0"),
    ("--seed -1", "seed.*-1"),
]


@pytest.mark.parametrize(("options", "pattern"), CHAT_VALUES, ids=[options for options, _ in CHAT_VALUES])
def test_impossible_sampling_is_refused(nanochat, trained, options, pattern):
    done = nanochat("chat", trained / "chat", "--prompt", "Hi", *options.split())
    assert_refused(done, pattern)
    assert done.out == ""


def test_a_prompt_too_long_is_refused(nanochat, trained):
    assert_refused(nanochat("chat", trained / "chat", "--prompt", "word " * 200), "context is 64")


@pytest.mark.parametrize("count", ["0", "-3"])
def test_no_questions_is_refused(nanochat, trained, count):
    assert_refused(nanochat("evaluate", trained / "chat", "--questions", count), f"at least 1, got {count}")


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ([], "Expected one of"),
        (["trian"], "trian"),
        (["tokenizer"], "tokenizer"),
        (["tokenizer", "train"], "PATH"),
        (["convert", "only-one"], "PATH"),
        (["convert", "a", "b", "--to", "gguf"], "gguf"),
        (["convert", "nowhere", "out"], "nowhere"),
        (["primer", "--seed", "x"], "x"),
        (["sft"], "no model in.*nanochat pretrain"),
        (["chat"], "no trained model under runs.*nanochat speedrun"),
        (["evaluate"], "no trained model under runs"),
        (["chat", "./nowhere"], "no folder ./nowhere"),
        (["evaluate", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_other_mistakes(nanochat, tmp_path, monkeypatch, arguments, pattern):
    monkeypatch.chdir(tmp_path)
    assert_refused(nanochat(*arguments), pattern)


@pytest.mark.parametrize("verb", ["pretrain", "sft", "speedrun"])
def test_a_run_that_is_a_file(nanochat, corpus, tmp_path, verb):
    (tmp_path / "file").write_text("precious")
    data = "chats.jsonl" if verb == "sft" else "corpus.jsonl"
    assert_refused(nanochat(verb, "--data", corpus / data, "--run", tmp_path / "file"), "is a file")
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("verb", ["pretrain", "sft"])
def test_what_was_trained_is_not_overwritten(nanochat, corpus, trained, verb):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file() and path.name != ".lock"}
    data = "chats.jsonl" if verb == "sft" else "corpus.jsonl"
    assert_refused(nanochat(verb, "--data", corpus / data, "--run", trained), "was begun before.*--resume.*--run")
    assert_refused(nanochat(verb, "--run", trained, "--resume"), "is complete; there is nothing to resume")
    after = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file() and path.name != ".lock"}
    assert after == before


# ---------------------------------------------------------------------------------------------- damaged folders


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


MODEL_DAMAGE = {
    "weights cut off": lambda folder: cut(folder / "model.safetensors"),
    "weights empty": lambda folder: (folder / "model.safetensors").write_bytes(b""),
    "weights missing": lambda folder: (folder / "model.safetensors").unlink(),
    "config cut off": lambda folder: cut(folder / "config.json"),
    "config missing": lambda folder: (folder / "config.json").unlink(),
    "config of nothing": lambda folder: (folder / "config.json").write_text("{}"),
    "config a list": lambda folder: (folder / "config.json").write_text("[]"),
    "config of wrong types": lambda folder: edit(folder / "config.json", hidden_size="wide"),
    "config of another size": lambda folder: edit(folder / "config.json", hidden_size=256),
    "config of impossible heads": lambda folder: edit(folder / "config.json", num_attention_heads=3),
    "tokenizer cut off": lambda folder: cut(folder / "tokenizer.json"),
    "tokenizer empty": lambda folder: (folder / "tokenizer.json").write_text(""),
    "tokenizer of nothing": lambda folder: (folder / "tokenizer.json").write_text("{}"),
    "tokenizer missing": lambda folder: (folder / "tokenizer.json").unlink(),
    "tokenizer config cut off": lambda folder: cut(folder / "tokenizer_config.json"),
}


def edit(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("damage", MODEL_DAMAGE.values(), ids=MODEL_DAMAGE.keys())
@pytest.mark.parametrize("verb", ["chat", "sft"])
def test_a_damaged_model_folder(nanochat, corpus, trained, tmp_path, verb, damage):
    damage(trained / "chat")
    if verb == "chat":
        done = nanochat("chat", trained / "chat", "--prompt", "Hi")
    else:
        run = tmp_path / "other"
        done = nanochat("sft", "--model", trained / "chat", "--run", run, "--data", corpus / "chats.jsonl")
    assert_refused(done, re.escape(str(trained / "chat")))
    assert done.out == ""


def test_a_model_of_another_architecture_is_refused_by_sft(nanochat, corpus, trained, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    other = Path(shutil.copytree(trained / "chat", tmp_path / "llama"))
    LlamaForCausalLM(config).save_pretrained(other)
    done = nanochat("sft", "--model", other, "--run", tmp_path / "run", "--data", corpus / "chats.jsonl")
    assert_refused(done, "LlamaForCausalLM|llama")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_tokenizer_of_the_run(nanochat, corpus, trained, tmp_path, name):
    run = tmp_path / "run"
    shutil.copytree(trained / "tokenizer", run / "tokenizer")
    cut(run / "tokenizer" / name)
    done = nanochat("pretrain", "--data", corpus / "corpus.jsonl", "--run", run, *TOY)
    assert_refused(done, "tokenizer")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "7", '{"base": 3}', '{"base": {}}', '{"base": {"recipe": {}}}', '{"base": {"recipe": 1}}'],
)
def test_a_damaged_recipe(nanochat, trained, content):
    shutil.rmtree(trained / "base")
    (trained / "recipe.json").write_text(content)
    assert_refused(nanochat("pretrain", "--run", trained, "--resume"), "recipe.json is damaged")


def test_a_hub_id_that_cannot_be_reached(nanochat, corpus, tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    model = "nobody-at-all/no-such-model"
    assert_refused(nanochat("chat", model, "--prompt", "Hi"), model)
    assert_refused(nanochat("evaluate", model), model)
    done = nanochat("sft", "--model", model, "--run", tmp_path / "run", "--data", corpus / "chats.jsonl")
    assert_refused(done, model)
    pytest.importorskip("datasets")
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    data = "nobody-at-all/no-such-data"
    assert_refused(nanochat("pretrain", "--data", data, "--run", tmp_path / "run", *TOY), data)


# -------------------------------------------------------------------------------------------- signals and neighbours


def start(*arguments):
    command = [*NANOCHAT, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def wait_for_steps(process, run, steps):
    """Wait until the process has done so many steps."""
    metrics, deadline = run / "metrics.jsonl", time.monotonic() + 120
    while not metrics.exists() or metrics.read_text().count("\n") < steps:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def losses(run):
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(len(records)))
    return [record["loss"] for record in records]


LONG = ["--tokens", 120 * 640]


def test_ctrl_c_saves_and_says_how_to_go_on(nanochat, corpus, tmp_path):
    run, data = tmp_path / "a run", corpus / "corpus.jsonl"
    process = start("pretrain", "--data", data, "--run", run, *TOY, *LONG)
    wait_for_steps(process, run, 3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err == "", "quiet in good order: no traceback, no progress bars of others"
    done = len(losses(run))
    assert f"Stopped after step {done} of 120" in out and 3 <= done < 120
    assert (run / "base" / "checkpoints" / f"step-{done:06d}" / "config.json").is_file()
    assert not (run / "base" / "config.json").exists()

    [command] = re.findall(r"^nanochat pretrain .*$", out, re.M)
    answer = nanochat("chat", run / "base" / "checkpoints" / f"step-{done:06d}", "--prompt", "Hi")
    assert answer.code == 0, "a checkpoint in the middle of the run is a model like any other"
    rest = nanochat(*shlex.split(command)[1:])
    assert rest.code == 0 and f"going on after step {done}" in rest.out
    nanochat("pretrain", "--data", data, "--run", tmp_path / "undisturbed", *TOY, *LONG)
    assert losses(run) == losses(tmp_path / "undisturbed")
    assert same_weights(run / "base", tmp_path / "undisturbed" / "base")


def same_weights(one, other):
    from safetensors.torch import load_file

    one, other = (load_file(folder / "model.safetensors") for folder in (one, other))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_two_runs_at_once_and_a_third_in_the_way(nanochat, corpus, tmp_path):
    data = corpus / "corpus.jsonl"
    runs = [tmp_path / "one", tmp_path / "two"]
    processes = [start("pretrain", "--data", data, "--run", run, *TOY, *LONG) for run in runs]
    wait_for_steps(processes[0], runs[0], 1)
    third = nanochat("pretrain", "--run", runs[0], "--resume")
    assert_refused(third, f"Another process is training in {re.escape(str(runs[0]))}")
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, ""), out
    assert losses(runs[0]) == losses(runs[1])
    assert same_weights(runs[0] / "base", runs[1] / "base")


@pytest.mark.slow
def test_a_killed_run_resumes(nanochat, corpus, tmp_path):
    run, data = tmp_path / "killed", corpus / "corpus.jsonl"
    process = start("pretrain", "--data", data, "--run", run, *TOY, *LONG)
    wait_for_steps(process, run, 20)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert_refused(nanochat("pretrain", "--data", data, "--run", run, *TOY), "was begun before.*--resume")
    assert nanochat("pretrain", "--run", run, "--resume").code == 0
    nanochat("pretrain", "--data", data, "--run", tmp_path / "undisturbed", *TOY, *LONG)
    assert losses(run) == losses(tmp_path / "undisturbed")
    assert same_weights(run / "base", tmp_path / "undisturbed" / "base")


def test_make_demo_is_a_command_that_exists(nanochat, monkeypatch):
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    [line] = [line for line in makefile.splitlines() if line.startswith("\t$(BIN)/nanochat ")]
    called = []
    monkeypatch.setattr("nanochat.stages.speedrun.speedrun", called.append)
    assert nanochat(*shlex.split(line)[1:]).code == 0
    assert [options.run for options in called] == [Path("runs/demo")]
