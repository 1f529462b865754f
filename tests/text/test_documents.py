import gzip
import json

import datasets
import pyarrow
import pytest

from bamboo.errors import InputError
from bamboo.text.documents import LONG, SHORT, find_sources, read_documents


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def refused(*sources, field="text"):
    """The one line that reading raises."""
    with pytest.raises(InputError) as error:
        list(read_documents(find_sources(sources), field))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_small_file_is_a_document_with_plain_line_ends_and_without_a_byte_order_mark(tmp_path):
    path = write(tmp_path / "a.txt", "Straße\r\n\r\nb\rc\nd", encoding="utf-8-sig")
    assert list(read_documents([path])) == ["Straße\n\nb\nc\nd"]


def test_folders_are_read_at_any_depth_in_the_order_of_their_names_and_pass_over_what_is_no_text(tmp_path):
    for name in ("b.txt", "a/z.MD", "a/b/c.rst", "c.text"):
        write(tmp_path / name, name)
    for name in (".hidden/x.txt", ".x.txt", "picture.png", "cache-1.arrow"):
        write(tmp_path / name, "no")
    write(tmp_path / "empty.txt", "")
    write(tmp_path / "blank.txt", " \n\t\n")
    assert list(read_documents(find_sources([tmp_path]))) == ["a/b/c.rst", "a/z.MD", "b.txt", "c.text"]
    assert find_sources([tmp_path / "b.txt", tmp_path])[0] == tmp_path / "b.txt"
    assert len(find_sources([tmp_path / "b.txt", tmp_path])) == 5  # the blank one too, but none twice


@pytest.mark.parametrize(
    ("unit", "end"),
    [("word " * 9 + "\n", "\n"), ("a line\nafter\n \t\nanother ", "\n \t\n"), ("word ", " "), ("\u6f22", "\u6f22")],
)
@pytest.mark.parametrize("ending", ["txt", "jsonl"])
def test_a_long_text_is_cut_into_documents_that_give_it_back(tmp_path, unit, end, ending):
    text = unit * (300_000 // len(unit))
    path = write(tmp_path / f"a.{ending}", json.dumps({"text": text}) if ending == "jsonl" else text)
    documents = list(read_documents([path]))
    assert "".join(documents) == text
    assert all(document.endswith(end) for document in documents[:-1])
    assert all(SHORT <= len(document) <= LONG for document in documents[:-1])


def test_line_ends_and_characters_may_lie_across_the_blocks_that_are_read(tmp_path):
    text = "".join(f"{i} é漢😀\r\n" for i in range(40_000))
    assert "".join(read_documents([write(tmp_path / "a.txt", text)])) == text.replace("\r\n", "\n")


def test_json_lines_give_their_field(tmp_path):
    documents = ["a\nb", "\0 in a string", "é"]
    lines = "\n\n".join(json.dumps({"id": 1, "body": document}) for document in [*documents, "", " "])
    path = write(tmp_path / "a.jsonl", "\ufeff" + lines)
    assert list(read_documents([path], "body")) == documents


def test_half_a_pair_of_surrogates_becomes_a_question_mark(tmp_path):
    assert list(read_documents([write(tmp_path / "a.jsonl", '{"text": "a \\ud83d b"}')])) == ["a ? b"]


def test_data_sets_of_hugging_face_are_read_as_saved_or_as_parquet(tmp_path):
    first, second = ([f"{name} {i}" for i in range(150)] for name in ("one", "two"))
    splits = {"train": datasets.Dataset.from_dict({"text": first, "id": range(150)})}
    splits["test"] = datasets.Dataset.from_dict({"text": second, "id": range(150)})
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved", num_shards={"train": 3, "test": 1})
    assert list(read_documents(find_sources([tmp_path / "saved"]))) == second + first  # test/ before train/
    assert list(read_documents(find_sources([tmp_path / "saved" / "train"]))) == first
    (tmp_path / "tables").mkdir()
    for number, split in enumerate(splits.values()):
        split.to_parquet(str(tmp_path / "tables" / f"{number}.parquet"))
    assert list(read_documents(find_sources([tmp_path / "tables"]))) == first + second
    assert "has no column 'body', but 'text', 'id'" in refused(tmp_path / "tables", field="body")
    assert "row 1: 'id' is of type int, expected text" in refused(tmp_path / "saved", field="id")
    whole = (tmp_path / "tables" / "0.parquet").read_bytes()
    assert "no Parquet" in refused(write(tmp_path / "cut.parquet", whole[: len(whole) // 2]))
    assert "no Arrow" in refused(write(tmp_path / "bad.arrow", b"nothing of the kind"))


def test_what_is_missing_or_empty_is_refused_before_anything_is_read(tmp_path):
    good = write(tmp_path / "good.txt", "good")
    (tmp_path / "folder").mkdir()
    for name, reason in {"no.txt": "is missing", "folder": "holds no text"}.items():
        with pytest.raises(InputError, match=reason):
            find_sources([good, tmp_path / name])
    for path in (write(tmp_path / "empty.txt", ""), write(tmp_path / "table.csv", "a,b")):
        with pytest.raises(InputError, match=rf"{path.name} holds no text: expected \.txt"):
            find_sources([path])


def test_binary_files_and_other_encodings_are_refused_with_the_place(tmp_path):
    assert "binary.txt holds a NUL: it is binary" in refused(write(tmp_path / "binary.txt", b"a" * 70_000 + b"\0"))
    latin = write(tmp_path / "latin.txt", "a\n" * 50_000 + "naïve", encoding="latin1")
    assert "latin.txt:50001 is not UTF-8" in refused(latin)
    assert "cut.txt:1 is not UTF-8" in refused(write(tmp_path / "cut.txt", "漢".encode()[:-1]))
    assert "wide.txt:1 is not UTF-8" in refused(write(tmp_path / "wide.txt", "text", encoding="utf-16"))


def test_json_lines_that_are_wrong_are_refused_with_their_number(tmp_path):
    bad = {
        **dict.fromkeys(("{'text': 1}", '["a"]', '{"body": "a"}'), "a.jsonl:3 is no JSON object with a field 'text'"),
        '{"text": null}': "a.jsonl:3: 'text' is of type NoneType, expected text",
    }
    for line, reason in bad.items():
        assert reason in refused(write(tmp_path / "a.jsonl", f'{{"text": "a"}}\n\n{line}\n'))
    latin = '{"text": "a"}\n{"text": "naïve"}'
    assert "a.jsonl:2 is no JSON" in refused(write(tmp_path / "a.jsonl", latin, encoding="latin1"))


def packed(text, ending):
    if ending == "gz":
        return gzip.compress(text.encode())
    return pyarrow.compress(text.encode(), "zstd", asbytes=True)


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_compressed_files_give_the_documents_of_plain_ones(tmp_path, ending):
    lines = "".join(json.dumps({"text": f"{i} é漢😀\r\n" * 2000}) + "\n" for i in range(5))
    plain = "".join(f"{i} é漢😀\r\n" for i in range(40_000))
    for name, text in {"a.jsonl": lines, "b.txt": plain}.items():
        write(tmp_path / "plain" / name, text)
        twice = packed(text[: len(text) // 2], ending) + packed(text[len(text) // 2 :], ending)  # two members
        write(tmp_path / "packed" / f"{name}.{ending}", twice)
    expected = list(read_documents(find_sources([tmp_path / "plain"])))
    assert len(expected) > 10
    assert list(read_documents(find_sources([tmp_path / "packed"]))) == expected


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_compressed_files_that_are_wrong_are_refused(tmp_path, ending):
    whole = packed('{"text": "a"}\n' * 10_000, ending)
    for size in (3, len(whole) // 2, len(whole) - 1):
        assert f"a.jsonl.{ending}" in refused(write(tmp_path / f"a.jsonl.{ending}", whole[:size]))
    assert f"cannot read {tmp_path}/b.txt.{ending}: " in refused(write(tmp_path / f"b.txt.{ending}", b"nothing such"))
    bad = packed('{"text": "a"}\n{"text"\n', ending)
    assert f"a.jsonl.{ending}:2 is no JSON" in refused(write(tmp_path / f"a.jsonl.{ending}", bad))
    latin = gzip.compress("a\nna\xefve".encode("latin1"))
    assert "c.txt.gz:2 is not UTF-8" in refused(write(tmp_path / "c.txt.gz", latin))


def test_data_sets_of_the_hub_are_streamed(tmp_path, monkeypatch):
    asked = []

    def load_dataset(name, config, split, streaming):
        asked.append((name, config, split, streaming))
        return datasets.Dataset.from_dict({"body": ["one", " ", "two"], "id": [1, 2, 3]}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    sources = find_sources(["hf:Salesforce/wikitext,config=wikitext-103-raw-v1,split=test", "hf:a/b"])
    assert list(read_documents(sources, "body")) == ["one", "two"] * 2
    assert asked == [("Salesforce/wikitext", "wikitext-103-raw-v1", "test", True), ("a/b", None, "train", True)]
    assert refused("hf:a/b") == "hf:a/b has no column 'text', but 'body', 'id'"
    assert "hf:a/b, row 1: 'id' is of type int, expected text" in refused("hf:a/b", field="id")
    with pytest.raises(InputError, match="unknown option 'splt': did you mean 'split'"):
        find_sources(["hf:a/b,splt=test"])


def test_what_the_hub_does_not_have_is_one_line():
    assert refused("hf:nobody/nothing").startswith("hf:nobody/nothing cannot be read: ")
