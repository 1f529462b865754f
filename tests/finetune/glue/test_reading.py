import json
import logging
import subprocess
import sys

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from bamboo.errors import InputError
from bamboo.finetune.glue.reading import Examples, read_split
from bamboo.finetune.glue.tasks import DIAGNOSTIC, TASKS

MNLI_HEADER = "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
MNLI_HEADER += "sentence2_parse\tsentence1\tsentence2"
STSB_HEADER = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
MRPC_HEADER = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"

# Task, split, file, its lines, and what they say. There are quotes, empty fields, blank lines, and odd characters.
OFFICIAL = [
    (
        "cola",
        "train",
        "CoLA/train.tsv",
        ['gj04\t1\t\t"Nobody left.', "", "gj04\t0\t*\tsentence\u2028label"],
        Examples(['"Nobody left.', "sentence\u2028label"], None, [1, 0], [0, 1]),
    ),
    (
        "cola",
        "dev",
        "CoLA/dev.tsv",
        ["clc95\t0\t??\tHe said 'no'."],
        Examples(["He said 'no'."], None, [0], [0]),
    ),
    (
        "cola",
        "test",
        "CoLA/test.tsv",
        ["index\tsentence", '0\t"Bill" left', "1\t"],
        Examples(['"Bill" left', ""], None, None, [0, 1]),
    ),
    (
        "sst2",
        "train",
        "SST-2/train.tsv",
        ["sentence\tlabel", 'a " charming journey \t1', "\t0"],
        Examples(['a " charming journey ', ""], None, [1, 0], [0, 1]),
    ),
    (
        "sst2",
        "test",
        "SST-2/test.tsv",
        ["index\tsentence", "0\tuneasy\x85mishmash"],
        Examples(["uneasy\x85mishmash"], None, None, [0]),
    ),
    (
        "mrpc",
        "dev",
        "MRPC/dev.tsv",
        [MRPC_HEADER, '1\t10\t11\t" One\tTwo "', '0\t12\t13\tThree "\t'],
        Examples(['" One', 'Three "'], ['Two "', ""], [1, 0], [0, 1]),
    ),
    (
        "mrpc",
        "test",
        "MRPC/test.tsv",
        ["index\t#1 ID\t#2 ID\t#1 String\t#2 String", "0\t10\t11\tOne\tTwo"],
        Examples(["One"], ["Two"], None, [0]),
    ),
    (
        "stsb",
        "train",
        "STS-B/train.tsv",
        [
            f"{STSB_HEADER}\tscore",
            "0\tmain-captions\tMSRvid\t2012test\t0001\tnone\tnone\tA plane\tAn air plane\t5.000",
            '1\tmain-forums\tdeft\t2014\t7\t\t\t"Go\t\t0.6',
        ],
        Examples(["A plane", '"Go'], ["An air plane", ""], [5.0, 0.6], [0, 1]),
    ),
    (
        "stsb",
        "test",
        "STS-B/test.tsv",
        [STSB_HEADER, "0\tg\tf\ty\t0024\tnone\tnone\tA girl\tA woman"],
        Examples(["A girl"], ["A woman"], None, [0]),
    ),
    (
        "qqp",
        "dev",
        "QQP/dev.tsv",
        ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", '201359\t1\t2\tWhy "x?\tWhy?\t0'],
        Examples(['Why "x?'], ["Why?"], [0], [201359]),
    ),
    (
        "qqp",
        "test",
        "QQP/test.tsv",
        ["id\tquestion1\tquestion2", "0\tWould?\t"],
        Examples(["Would?"], [""], None, [0]),
    ),
    (
        "mnli",
        "train",
        "MNLI/train.tsv",
        [
            f"{MNLI_HEADER}\tlabel1\tgold_label",
            "0\t31193\t31193n\tgovernment\t( a )\t( b )\t(ROOT\t(ROOT\tCream\tProduct\tneutral\tneutral",
            "1\t1\t1c\tfiction\t\t\t\t\tA\tB\tentailment\tcontradiction",
        ],
        Examples(["Cream", "A"], ["Product", "B"], [1, 2], [0, 1]),
    ),
    (
        "mnli",
        "dev_matched",
        "MNLI/dev_matched.tsv",
        [
            f"{MNLI_HEADER}\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label",
            "0\t6\t6e\tslate\t\t\t\t\tOne\tTwo\tneutral\tneutral\tentailment\tentailment\tentailment\tentailment",
        ],
        Examples(["One"], ["Two"], [0], [0]),
    ),
    (
        "mnli",
        "dev_mismatched",
        "MNLI/dev_mismatched.tsv",
        [f"{MNLI_HEADER}\tgold_label", "0\t6\t6e\tverbatim\t\t\t\t\tOther\tTwo\tcontradiction"],
        Examples(["Other"], ["Two"], [2], [0]),
    ),
    (
        "mnli",
        "test_mismatched",
        "MNLI/test_mismatched.tsv",
        [MNLI_HEADER, "0\t6\t6e\tverbatim\t\t\t\t\tOther\tTwo"],
        Examples(["Other"], ["Two"], None, [0]),
    ),
    (
        "qnli",
        "dev",
        "QNLI/dev.tsv",
        ["index\tquestion\tsentence\tlabel", '0\tWhat "law\tAs of that day\tentailment', "1\tA\tB\tnot_entailment"],
        Examples(['What "law', "A"], ["As of that day", "B"], [0, 1], [0, 1]),
    ),
    (
        "rte",
        "train",
        "RTE/train.tsv",
        ["index\tsentence1\tsentence2\tlabel", "0\tOne\tTwo\tnot_entailment", '1\t"A\tB"\tentailment'],
        Examples(["One", '"A'], ["Two", 'B"'], [1, 0], [0, 1]),
    ),
    (
        "wnli",
        "dev",
        "WNLI/dev.tsv",
        ["index\tsentence1\tsentence2\tlabel", "0\tThe drain\tThe hair\t1"],
        Examples(["The drain"], ["The hair"], [1], [0]),
    ),
    (
        "ax",
        "test",
        "diagnostic/diagnostic.tsv",
        ["index\tsentence1\tsentence2", "0\tThe cat\tThe mat"],
        Examples(["The cat"], ["The mat"], None, [0]),
    ),
]


def task_named(name):
    return DIAGNOSTIC if name == "ax" else TASKS[name]


def write(path, lines, end="\n", start=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((start + end.join((*lines, ""))).encode())


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "mark"])
@pytest.mark.parametrize(("name", "split", "file", "lines", "expected"), OFFICIAL, ids=[row[2] for row in OFFICIAL])
def test_official_files_give_the_rows_written_into_them(tmp_path, name, split, file, lines, expected, start, end):
    write(tmp_path / file, lines, end, start)
    assert read_split(task_named(name), tmp_path, split) == expected


@pytest.mark.parametrize(("name", "split", "file", "lines", "expected"), OFFICIAL, ids=[row[2] for row in OFFICIAL])
def test_a_row_with_another_number_of_columns_is_named(tmp_path, name, split, file, lines, expected):
    columns = lines[0].count("\t") + 1
    write(tmp_path / file, [*lines, lines[-1] + "\tmore"])
    with pytest.raises(InputError, match=rf"{file}:{len(lines) + 1}: expected {columns} columns, got {columns + 1}: "):
        read_split(task_named(name), tmp_path, split)


def test_a_file_without_a_last_line_end_is_read_whole(tmp_path):
    write(tmp_path / "RTE/dev.tsv", ["index\tsentence1\tsentence2\tlabel", "0\tOne\tTwo\tentailment"])
    path = tmp_path / "RTE/dev.tsv"
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    assert read_split(TASKS["rte"], tmp_path, "dev").labels == [0]


def test_rows_of_qqp_that_line_breaks_cut_in_two_are_skipped_and_counted(tmp_path, caplog):
    lines = [
        "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
        "1\t2\t3\tA?\tB?\t1",
        '4\t5\t6\t"Was he a',
        '"\tWas he?\t0',
        "7\t8\t9\tC?\tD?\t0",
    ]
    write(tmp_path / "QQP/train.tsv", lines)
    with caplog.at_level(logging.WARNING):
        assert read_split(TASKS["qqp"], tmp_path, "train") == Examples(["A?", "C?"], ["B?", "D?"], [1, 0], [1, 7])
    assert "QQP/train.tsv: skipped 2 rows with missing columns, the first at line 3" in caplog.text
    write(tmp_path / "QQP/test.tsv", ["id\tquestion1\tquestion2", "0\tA?"])
    with pytest.raises(InputError, match=r"QQP/test.tsv:2: expected 3 columns, got 2"):  # a submission needs every row
        read_split(TASKS["qqp"], tmp_path, "test")


def features(task):
    label = Value("float32") if task.is_regression else ClassLabel(names=list(task.labels))
    return Features({**{name: Value("string") for name in task.texts}, "label": label, "idx": Value("int32")})


def hub_split(task, labelled=True):
    scores = [0.5, 5.0, 2.25] if task.is_regression else [task.num_outputs - 1, 0, 1]
    labels = scores if labelled else [-1] * 3
    texts = {name: [f'{name} "{row}' for row in range(3)] for name in task.texts}
    return Dataset.from_dict({**texts, "label": labels, "idx": [4, 5, 6]}, features=features(task))


def hub_examples(task, labelled=True):
    texts = [[f'{name} "{row}' for row in range(3)] for name in task.texts]
    scores = [0.5, 5.0, 2.25] if task.is_regression else [task.num_outputs - 1, 0, 1]
    return Examples(texts[0], texts[1] if texts[1:] else None, scores if labelled else None, [4, 5, 6])


def hub_name(split):
    return split.replace("dev", "validation")


def save_parquet(dataset, path):
    dataset.to_parquet(path.with_name(f"{path.name}-00000-of-00001.parquet"))


def save_shards(dataset, path):
    for number, rows in enumerate(([0, 1], [2])):
        dataset.select(rows).to_parquet(path.with_name(f"{path.name}-0000{number}-of-00002.parquet"))


def save_plain_parquet(dataset, path):
    table = pyarrow.table(dataset.to_dict())  # without the names of the classes
    pyarrow.parquet.write_table(table, path.with_name(f"{path.name}.parquet"))


def save_json_lines(dataset, path):
    dataset.to_json(path.with_name(f"{path.name}.jsonl"))


SAVE = [save_parquet, save_shards, save_plain_parquet, save_json_lines, Dataset.save_to_disk]


@pytest.mark.parametrize("save", SAVE, ids=lambda save: save.__name__)
@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.name)
def test_files_of_the_hugging_face_data_set_give_the_rows_written_into_them(tmp_path, task, save):
    folder = tmp_path / "glue" / task.name
    folder.mkdir(parents=True)
    for split in task.rows:
        save(hub_split(task, split not in task.test_splits), folder / hub_name(split))
    for split in task.rows:
        expected = hub_examples(task, split not in task.test_splits)
        assert read_split(task, tmp_path / "glue", split) == expected
        assert read_split(task, str(folder), split) == expected  # the folder of the task itself


def test_a_saved_dictionary_of_splits_is_read(tmp_path):
    task = TASKS["rte"]
    DatasetDict({"train": hub_split(task), "validation": hub_split(task)}).save_to_disk(tmp_path / "rte")
    assert read_split(task, tmp_path, "dev") == hub_examples(task)


def test_classes_in_another_order_are_put_into_the_published_one(tmp_path):
    order = ClassLabel(names=["not_entailment", "entailment"])
    other = Features({"sentence1": Value("string"), "sentence2": Value("string"), "label": order})
    dataset = Dataset.from_dict({"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [0, 1]}, features=other)
    (tmp_path / "rte").mkdir()
    dataset.to_parquet(tmp_path / "rte" / "train.parquet")
    dataset.save_to_disk(tmp_path / "rte" / "validation")
    for split in ("train", "dev"):
        assert read_split(TASKS["rte"], tmp_path, split).labels == [1, 0]


def test_json_lines_may_spell_labels_out(tmp_path):
    rows = [{"question": "Q", "sentence": "S", "label": label} for label in ("not_entailment", "entailment", 1)]
    write(tmp_path / "qnli/dev.jsonl", map(json.dumps, rows))
    assert read_split(TASKS["qnli"], tmp_path, "dev") == Examples(["Q"] * 3, ["S"] * 3, [1, 0, 1], [0, 1, 2])


def test_a_name_that_is_no_folder_is_loaded_from_the_hub(monkeypatch, tmp_path, caplog):
    calls = []

    def load_dataset(*args, **kwargs):
        calls.append((*args, kwargs["split"]))
        return hub_split(TASKS["mnli"])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for name in ("nyu-mll/glue", "glue"):
        assert read_split(TASKS["mnli"], name, "dev_mismatched") == hub_examples(TASKS["mnli"])
    assert calls == [("nyu-mll/glue", "mnli", "validation_mismatched")] * 2
    assert "nyu-mll/glue is no folder here: loading the data set of that name from the Hugging Face hub" in caplog.text


def test_without_a_network_the_hub_is_one_clear_line(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^nyu-mll/glue is no folder, nor to be had from the hub \(.+\)$"):
        read_split(TASKS["rte"], "nyu-mll/glue", "train")


RTE_HEADER = "index\tsentence1\tsentence2\tlabel"
FAULTS = [
    ("rte", "RTE/train.tsv", [RTE_HEADER, "0\tA\tB\tneutral"], r"train.tsv:2: the label is 'neutral': expected ent"),
    (
        "rte",
        "RTE/train.tsv",
        ["", RTE_HEADER, "", "0\tA\tB\t0"],
        r"train.tsv:4: the label is '0': expected entailment",
    ),
    ("cola", "CoLA/train.tsv", ["gj04\t1\t\tA", "gj04\t2\t\tB"], r"train.tsv:2: the label is '2': expected 0 or 1 or"),
    ("cola", "CoLA/train.tsv", ["gj04\t1\t\tA", "gj04\t1\tB"], r"train.tsv:2: expected 4 columns, got 3: source, "),
    ("rte", "RTE/train.tsv", ["index\tsentence1\tlabel"], r"train.tsv:1: no column 'sentence2', only index, sentence1"),
    ("rte", "RTE/train.tsv", [RTE_HEADER], r"RTE/train.tsv is empty: expected rows of RTE"),
    ("rte", "RTE/train.tsv", [], r"RTE/train.tsv is empty: expected a header line with sentence1, sentence2, label"),
    ("cola", "CoLA/train.tsv", [], r"CoLA/train.tsv is empty: expected rows of CoLA"),
    (
        "stsb",
        "STS-B/train.tsv",
        ["sentence1\tsentence2\tscore", "A\tB\t5.1"],
        r":2: the label is '5.1': expected a num",
    ),
    ("stsb", "STS-B/train.tsv", ["sentence1\tsentence2\tscore", "A\tB\t-0.1"], r":2: the label is '-0.1': expected a"),
    (
        "stsb",
        "STS-B/train.tsv",
        ["sentence1\tsentence2\tscore", "A\tB\tnan"],
        r":2: the label is 'nan': expected a numb",
    ),
    (
        "stsb",
        "STS-B/train.tsv",
        ["sentence1\tsentence2\tscore", "A\tB\t"],
        r":2: the label is '': expected a number fr",
    ),
    ("rte", "rte/train.jsonl", ["{"], r"rte/train.jsonl:1: not JSON \(.+\): expected one object a line"),
    ("rte", "rte/train.jsonl", ["[1]"], r"rte/train.jsonl:1: a list: expected one JSON object a line"),
    (
        "cola",
        "cola/train.jsonl",
        ['{"sentence": "A", "label": 1, "idx": 0}', '{"sentence": "A", "label": 1}'],
        r"cola/train.jsonl:2: no column 'idx', only sentence, label",
    ),
    ("cola", "cola/train.jsonl", ['{"sentence": "A", "label": -1}'], r"jsonl:1: the label is -1: expected 0 or 1"),
    ("cola", "cola/train.jsonl", ['{"sentence": "A", "label": null}'], r"jsonl:1: the label is None: expected 0 or"),
    ("cola", "cola/train.jsonl", ['{"sentence": "A", "label": [0]}'], r"jsonl:1: the label is \[0\]: expected 0 or 1"),
    (
        "cola",
        "cola/train.jsonl",
        ['{"sentence": null, "label": 1}'],
        r"jsonl:1: the first text is None: expected a str",
    ),
    ("cola", "cola/train.parquet", ["PAR1"], r"cola/train.parquet is cut short or no Parquet file"),
    ("cola", "cola/train/state.json", ["{}"], r"cola/train is no data set that can be read"),
]


@pytest.mark.parametrize(("name", "file", "lines", "message"), FAULTS)
def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path, name, file, lines, message):
    write(tmp_path / file, lines)
    with pytest.raises(InputError, match=message) as caught:
        read_split(TASKS[name], tmp_path, "train")
    assert "\n" not in str(caught.value)


def test_a_row_of_a_parquet_file_is_named_by_its_number(tmp_path):
    (tmp_path / "stsb").mkdir()
    content = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [1.0, 9.0]}
    pyarrow.parquet.write_table(pyarrow.table(content), tmp_path / "stsb" / "train.parquet")
    with pytest.raises(InputError, match=r"train.parquet, row 2: the label is 9.0: expected a number from 0 to 5"):
        read_split(TASKS["stsb"], tmp_path, "train")


def test_text_that_is_not_utf8_is_named_by_its_line(tmp_path):
    write(tmp_path / "CoLA/train.tsv", ["gj04\t1\t\tA", "gj04\t1\t\tB"])
    with (tmp_path / "CoLA/train.tsv").open("ab") as file:
        file.write("gj04\t1\t\tcafé\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"CoLA/train.tsv:3: not UTF-8 text"):
        read_split(TASKS["cola"], tmp_path, "train")


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no folder STS-B/ or stsb/ there, which holds the data of STS-B"):
        read_split(TASKS["stsb"], tmp_path, "train")
    (tmp_path / "MNLI").mkdir()
    looked = r"looked for dev_matched.tsv, validation_matched-\*.parquet, validation_matched.jsonl and a data set"
    with pytest.raises(InputError, match=rf"MNLI: no MNLI dev_matched data there: {looked}"):
        read_split(TASKS["mnli"], tmp_path, "dev_matched")
    with pytest.raises(InputError, match=r"unknown split of MNLI 'dev': choose one of dev_matched, dev_mismatched"):
        read_split(TASKS["mnli"], tmp_path, "dev")
    with pytest.raises(
        InputError, match=r"nowhere is no folder: give the folder of the GLUE download, with CoLA/ in it"
    ):
        read_split(TASKS["cola"], tmp_path / "nowhere", "train")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file is no folder"):
        read_split(TASKS["cola"], tmp_path / "file", "train")


def test_another_number_of_rows_than_the_official_is_warned_of_once(tmp_path, caplog):
    write(tmp_path / "WNLI/dev.tsv", [RTE_HEADER, "0\tA\tB\t1"])
    with caplog.at_level(logging.WARNING):
        read_split(TASKS["wnli"], tmp_path, "dev")
        read_split(TASKS["wnli"], tmp_path, "dev")
    (record,) = caplog.records
    assert record.getMessage().startswith("WNLI dev: 1 rows in ")
    assert record.getMessage().endswith("the official set has 71")


def test_the_official_number_of_rows_is_not_warned_of(tmp_path, caplog):
    write(tmp_path / "WNLI/dev.tsv", [RTE_HEADER, *(f"{row}\tA\tB\t1" for row in range(71))])
    with caplog.at_level(logging.WARNING):
        assert len(read_split(TASKS["wnli"], tmp_path, "dev").first) == 71
    assert not caplog.records


def test_reading_official_files_imports_neither_torch_nor_datasets():
    code = "import sys, bamboo.finetune.glue.reading; print({'torch', 'datasets'} & set(sys.modules) or 'none')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "none"
