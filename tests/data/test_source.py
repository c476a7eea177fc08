"""One source at a time: left anywhere and entered again; a hub data set read by the real library."""

import itertools
import json

import pytest

from nanochat.common import UserError
from nanochat.data import tokenization
from nanochat.data.sources import open_documents
from nanochat.data.tokenization import DocumentEncoder, tokenize


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """`owner/name` is streamed by the `datasets` library from three local files."""
    import datasets

    for number in range(3):
        rows = [json.dumps({"text": f"file {number} row {row}" if row % 9 else " ", "id": row}) for row in range(100)]
        (tmp_path / f"{number}.jsonl").write_text("\n".join(rows))
    real = datasets.load_dataset

    def load_dataset(name, split, streaming):
        assert name == "owner/name"
        files = [str(tmp_path / f"{number}.jsonl") for number in range(3)]
        return real("json", data_files=files, split=split, streaming=streaming, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def sources(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": f"a{number}"}) + "\n\n" for number in range(40)))
    (folder / "b.txt").write_text("\n\n" + "words and words\n\n" * 2000)
    return [open_documents(name, "train").sources[0] for name in (str(folder), "primer", "owner/name")]


def test_any_source_can_be_left_and_entered_again(hub, tmp_path):
    for source in sources(tmp_path):
        items, places = [], []
        for item in itertools.islice(source.items(), 250):
            items.append(item)
            places.append(json.loads(json.dumps(source.place())))
        assert len(items) > 40
        for number in range(0, len(items), 37):
            rest = list(itertools.islice(source.items(places[number]), len(items) - number - 1))
            assert rest == items[number + 1 :], (source.name, number)


def test_the_last_place_is_the_end(hub, tmp_path):
    for source in sources(tmp_path):
        if not source.endless:
            for _ in source.items():
                pass
            assert not list(source.items(source.place())), source.name


def test_positions_grow_to_the_size(tmp_path):
    folder = sources(tmp_path)[0]
    positions = [folder.position for _ in folder.items()]
    assert positions == sorted(positions) and positions[0] > 0
    assert 0.9 * folder.size < positions[-1] <= folder.size


def test_an_identity_tells_other_contents(tmp_path):
    def identity():
        return json.dumps(open_documents(str(path), "train").identity)

    path = tmp_path / "a.txt"
    path.write_text("one")
    seen = {identity()}
    path.write_text("other")
    seen.add(identity())
    (tmp_path / "b.txt").write_text("one")
    path = tmp_path / "b.txt"
    seen.add(identity())
    assert len(seen) == 3 and identity() in seen
    assert open_documents("primer", "train").identity != open_documents("primer", "train", seed=1).identity
    assert open_documents("primer", "train").identity != open_documents("primer", "val").identity


def test_a_hub_data_set_without_rows_is_named(monkeypatch):
    import datasets

    monkeypatch.setattr(
        datasets, "load_dataset", lambda *a, **k: datasets.IterableDataset.from_generator(lambda: iter(()))
    )
    with pytest.raises(UserError, match="hub data set owner/name has no rows"):
        list(open_documents("owner/name", "train").sources[0].items())


def test_the_validation_store_of_a_huge_corpus_takes_no_full_pass(tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenization, "CHUNK_CHARACTERS", 1000)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(100_000)))
    corpus = open_documents(str(tmp_path / "a.jsonl"), "val")
    given = []
    [source] = corpus.sources
    real = type(source).items
    source.items = lambda start=None: (given.append(item) or item for item in real(source, start))
    store = tokenize(tmp_path / "s", corpus, DocumentEncoder(tiny_tokenizer), max_tokens=500)
    assert store.meta.tokens == 500 and len(given) < 20_000
