import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.data.files import RECORD_ENDINGS, TEXT_ENDINGS, list_files, read

relaxed = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def texts(path):
    return [record.value for record in read(path, "text")]


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def test_text_is_cut_at_blank_lines_and_at_marks(write):
    paragraph = "word " * 300 + "\n"  # 1,501 characters
    documents = texts(write("a.txt", "\n".join([paragraph] * 7)))
    assert [document.count("word") for document in documents] == [900, 900, 300]
    assert texts(write("b.md", "one\n<|endoftext|>\ntwo\n\nstill two\n")) == ["one", "two\n\nstill two"]
    lines = texts(write("c.txt", "no blank line here\n" * 2000))
    assert all(16_000 <= len(document) < 16_100 for document in lines[:-1])
    huge = "x" * 3_000_000
    assert texts(write("d.txt", huge)) == [huge]


@relaxed
@given(st.text(st.characters(exclude_characters="\r", codec="utf-8")), st.sampled_from(["\n", "\r\n"]))
def test_text_loses_nothing_but_blank_lines(tmp_path, text, end):
    path = tmp_path / "any.txt"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", end).encode())
    lines = "\n".join(texts(path)).split("\n")
    assert [x for x in lines if x.strip()] == [x for x in text.split("\n") if x.strip()]


def test_jsonl_with_mark_crlf_blanks_and_any_size(write):
    long = "y" * 5_000_000
    lines = [json.dumps({"text": text}) for text in ("naïve", "two", long)]
    content = "\ufeff" + "\r\n\r\n".join(lines) + "\r\n  \n"
    assert texts(write("a.jsonl", content)) == ["naïve", "two", long]
    assert texts(write("a.jsonl.gz", gzip.compress(content.encode(), mtime=0))) == ["naïve", "two", long]
    assert list(read(write("a.jsonl", content), "text"))[1].where.endswith("a.jsonl line 3")


def test_a_line_may_be_a_bare_list_of_messages(write):
    path = write("a.jsonl", '[{"role": "user"}]\n{"messages": [1], "text": "x"}\n')
    assert [record.value for record in read(path, "messages")] == [[{"role": "user"}], [1]]


def test_parquet_is_read_over_row_groups(tmp_path):
    rows = [f"row {i}" for i in range(1500)]
    pq.write_table(pa.table({"id": range(1500), "text": rows}), tmp_path / "a.parquet", row_group_size=400)
    assert texts(tmp_path / "a.parquet") == rows
    assert list(read(tmp_path / "a.parquet", "text"))[700].where.endswith("a.parquet row 701")
    chat = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]]
    pq.write_table(pa.table({"messages": chat}), tmp_path / "b.parquet")
    assert [record.value for record in read(tmp_path / "b.parquet", "messages")] == chat


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"", r"a\.txt is empty"),
        ("a.jsonl", b"", r"a\.jsonl is empty"),
        ("a.txt", b"f\xc3\xaene\nna\xefve\n", r"a\.txt line 2 is not UTF-8 \(byte 0xef at offset 8\)"),
        ("a.txt", b"\xef\xbb\xbfna\xefve\n", r"line 1 is not UTF-8 \(byte 0xef at offset 5\)"),
        ("a.txt", "hello".encode("utf-16"), r"line 1 is not UTF-8 \(byte 0xff at offset 0\); save"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', r"a\.jsonl line 2 is not UTF-8"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n', r"a\.jsonl line 2 is not JSON: Expecting value at column 10"),
        ("a.jsonl", '{\n "text": "a"\n}', r"line 1 is not JSON"),
        ("a.jsonl", "[" * 100_000, r"line 1 is not readable JSON"),
        ("a.jsonl", '{"text": ' + "1" * 5000 + "}", r"line 1 is not readable JSON"),
        ("a.jsonl", '{"text": "\\ud83d"}', r"line 1 has half a surrogate pair"),
        ("a.jsonl", '\n\n{"body": "a", "id": 1}', r"a\.jsonl line 3 has no `text`; found: body, id"),
        ("a.jsonl", "{}", r"line 1 has no `text`; found: nothing"),
        ("a.jsonl", "42", r"line 1: expected an object with the key `text`, got a int"),
        ("a.jsonl", '{"messages": []}', r"line 1 holds conversations .* tune on it instead"),
        ("a.jsonl", "[]", r"line 1 holds conversations .* tune on it instead"),
        ("a.jsonl.gz", b"plain", r"a\.jsonl\.gz can't be read .*ot a gzipped file"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-12], r"a\.jsonl\.gz can't be read"),
        ("a.parquet", b"", r"a\.parquet can't be read after row 0"),
        ("a.parquet", b"PAR1 but no more", r"a\.parquet can't be read after row 0"),
    ],
)
def test_damage_is_told_with_file_and_line(write, name, content, told):
    path = write(name, content)
    with pytest.raises(UserError, match=told):
        texts(path)


def test_an_escaped_emoji_is_no_half_pair(write):
    assert texts(write("a.jsonl", '{"text": "\\ud83d\\ude00"}')) == ["😀"]


def test_damaged_parquet_is_told(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"some text {i}" for i in range(5000)]}), path, row_group_size=1000)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"a\.parquet can't be read after row 0 .*is it whole"):
        texts(path)
    path.write_bytes(whole[:2000] + bytes(4000) + whole[6000:])
    with pytest.raises(UserError, match=r"a\.parquet can't be read after row \d+"):
        texts(path)
    pq.write_table(pa.table({"messages": [["a"]], "id": [1]}), path)
    with pytest.raises(UserError, match=r"a\.parquet holds conversations .* --chat"):
        texts(path)
    not_text = pa.array([b"fine", b"\xff"], pa.binary())
    pq.write_table(pa.table({"text": not_text.view(pa.string())}), path)
    with pytest.raises(UserError, match=r"a\.parquet, in the 64 rows after row 0: not UTF-8"):
        texts(path)


def test_folders_give_their_data_files_in_order(write, tmp_path):
    both = TEXT_ENDINGS + RECORD_ENDINGS
    for name in ("b.jsonl", "a/z.TXT", "a/b.parquet", "README.md", ".cache/x.txt", "a/.hidden.txt", "x.tsv"):
        write(name, "x")
    names = [str(path.relative_to(tmp_path)) for path in list_files(tmp_path, both)]
    assert names == ["a/b.parquet", "a/z.TXT", "b.jsonl"]
    write("notes/one.md", "x")
    assert [path.name for path in list_files(tmp_path / "notes", both)] == ["one.md"]
    with pytest.raises(UserError, match=r"folder .*notes has no data files \(\.jsonl, \.jsonl\.gz, .*\.parquet\)"):
        list_files(tmp_path / "notes", RECORD_ENDINGS)
    with pytest.raises(UserError, match=r"no file or folder .*c\.jsonl; give a file \(\.txt, "):
        list_files(tmp_path / "c.jsonl", both)
    with pytest.raises(UserError, match=r"x\.tsv has an unknown ending; give a file \(\.txt, "):
        list_files(tmp_path / "x.tsv", both)


def zstd(data, frames=2):
    """Packed in several frames, as parallel packers do."""
    step = len(data) // frames + 1
    return b"".join(pa.compress(data[at : at + step], "zstd", asbytes=True) for at in range(0, len(data), step))


def every_kind(tmp_path):
    """A file of each kind, with what is awkward in each."""
    lines = [json.dumps({"text": f"naïve {number}\n" * (number % 7)}) for number in range(60)]
    content = ("\ufeff" + "\r\n".join(lines[:30]) + "\n\n \n" + "\n".join(lines[30:])).encode()
    paragraphs = "\ufeff" + "".join(f"Zeile {number} läuft.\r\n" + "\n" * (number % 30 == 0) for number in range(1500))
    marked = paragraphs.replace("Zeile 700", "<|endoftext|>\n\n\nZeile 700") + "<|endoftext|>\n"
    rows = [f"row {number}" for number in range(500)]
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content, mtime=0))
    (tmp_path / "a.jsonl.zst").write_bytes(zstd(content))
    (tmp_path / "a.txt").write_bytes(marked.encode())
    (tmp_path / "b.txt").write_bytes(b"a long line without any blank one\n" * 2000)
    pq.write_table(pa.table({"text": rows, "id": range(500)}), tmp_path / "a.parquet", row_group_size=150)
    return sorted(tmp_path.iterdir())


def test_reading_goes_on_after_any_record(tmp_path):
    for path in every_kind(tmp_path):
        records = list(read(path, "text"))
        assert len(records) > 4, path
        for number, record in enumerate(records):
            place = tuple(json.loads(json.dumps(record.next)))
            rest = [later for later in read(path, "text", place) if later.value]
            assert [later.value for later in rest] == [later.value for later in records[number + 1 :] if later.value]
            assert [later.next for later in rest] == [later.next for later in records[number + 1 :] if later.value]
        positions = [record.position for record in records]
        assert positions == sorted(positions) and 0 < positions[0] <= positions[-1] <= path.stat().st_size
        assert positions[-1] > 0.9 * path.stat().st_size


@pytest.mark.parametrize("content", [zstd(b'{"text": "a"}\n' * 99, 1)[:-12], b"plain", b""])
def test_damaged_zstd_is_told(write, content):
    with pytest.raises(UserError, match=r"a\.jsonl\.zst (can't be read|is empty)"):
        texts(write("a.jsonl.zst", content))
