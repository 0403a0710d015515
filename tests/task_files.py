"""Real records and small made ones in the original formats, and the hub's own conversion of them written once more."""

import json
from pathlib import Path

import pytest

# The made files of the tasks of which ../shared has no records; layout and traps of the originals.
MADE = {
    "WSC": [
        {
            "text": "Mark told Pete many lies about himself, which Pete included in his book. He was more skeptical.",
            "target": {"span1_index": 0, "span1_text": "Mark", "span2_index": 13, "span2_text": "He"},
            "idx": 0,
            "label": False,
        },
        {
            "text": "The city gave the men a permit because they asked.",
            "target": {"span1_index": 3, "span1_text": "The men.", "span2_index": 7, "span2_text": "They"},
            "idx": 1,
            "label": True,
        },
        {
            "text": "Kamenev, Stalin and Zinoviev met. They agreed.",
            "target": {"span1_index": 0, "span1_text": "Kamenev and Zinoviev", "span2_index": 5, "span2_text": "they"},
            "idx": 2,
            "label": False,
        },
        {
            "text": "Tom and his old dog walked. It barked.",
            "target": {"span1_index": 2, "span1_text": "his old\ndog", "span2_index": 6, "span2_text": "It"},
            "idx": 3,
            "label": True,
        },
    ],
    "WiC": [
        {
            "word": "place",
            "sentence1": "Do you want to come over to my place later?",
            "sentence2": "A political system with no place for the less prominent groups.",
            "idx": 0,
            "label": False,
            "start1": 31,
            "start2": 27,
            "end1": 36,
            "end2": 32,
            "version": 1.1,
        },
        {
            "word": 'ho"ld',
            "sentence1": " Hold it. ",
            "sentence2": "He held\u2028on.",  # a separator that splitlines() takes for the end of a line
            "idx": 1,
            "label": True,
            "start1": 1,
            "start2": 3,
            "end1": 5,
            "end2": 7,
            "version": 1.1,
        },
    ],
    "MultiRC": [
        {
            "idx": 0,
            "version": 1.1,
            "passage": {
                "text": "Susan had a cake.\nShe ate it.",
                "questions": [
                    {
                        "question": "Who ate?",
                        "idx": 0,
                        "answers": [{"text": "Susan", "idx": 0, "label": 1}, {"text": "a cake", "idx": 1, "label": 0}],
                    },
                    {
                        "question": "What was eaten? ",
                        "idx": 1,
                        "answers": [{"text": 'the "cake"', "idx": 2, "label": 1}],
                    },
                ],
            },
        },
        {
            "idx": 1,
            "version": 1.1,
            "passage": {
                "text": "It rains.",
                "questions": [{"question": "Does it?", "idx": 3, "answers": [{"text": "Yes", "idx": 3, "label": 1}]}],
            },
        },
    ],
}
WSC_FIXED = [("Mark", "He"), ("the men", "they"), ("Kamenev and Zinoviev", "They"), ("his old dog", "It")]

FILES = {
    ("SST-2", "train"): "sst2/SST-2/train.tsv",
    ("SST-2", "validation"): "sst2/SST-2/dev.tsv",
    ("RTE", "train"): "rte/RTE/train.jsonl",
    ("RTE", "validation"): "rte/RTE/val.jsonl",
    ("CB", "train"): "cb/CB/train.jsonl",
    ("CB", "validation"): "cb/CB/val.jsonl",
    ("BoolQ", "train"): "boolq/train.jsonl",
    ("BoolQ", "validation"): "boolq/dev.jsonl",
    ("COPA", "train"): "copa/COPA/train.jsonl",
    ("COPA", "validation"): "copa/COPA/val.jsonl",
    ("ReCoRD", "train"): "record/ReCoRD/train.jsonl",
    ("ReCoRD", "validation"): "record/ReCoRD/val.jsonl",
    ("SQuAD", "validation"): "squad/dev-v1.1.json",
    ("DROP", "train"): "drop/drop_dataset/drop_dataset_train.json",
    ("DROP", "validation"): "drop/drop_dataset/drop_dataset_dev.json",
    ("WSC", "train"): None,
    ("WiC", "train"): None,
    ("MultiRC", "train"): None,
}
SPLITS = list(FILES)


def original(task: str, split: str, tmp_path: Path, shared_data: Path) -> Path:
    """The original file of a split: a real one, or for three tasks the made one; skips where ../shared is absent."""
    if FILES[task, split] is None:
        folder = tmp_path / task
        folder.mkdir(exist_ok=True)
        lines = [json.dumps(line, ensure_ascii=False) for line in MADE[task]]
        (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return folder / "train.jsonl"
    path = shared_data / "data" / FILES[task, split]
    if not path.is_file():
        pytest.skip(f"{path} is not on this machine: real records of {task}")
    return path


def lines_of(path: Path) -> list:
    """The file's content with nothing interpreted: dicts of a jsonl or tsv file, or the one document of a json file."""
    content = path.read_bytes().decode("utf-8")
    if path.suffix == ".json":
        return json.loads(content)
    lines = [line for line in content.split("\n") if line]
    if path.suffix == ".tsv":
        return [dict(zip(("sentence", "label"), line.split("\t"), strict=True)) for line in lines[1:]]
    return [json.loads(line) for line in lines]


def hub_rows(task: str, split: str, path: Path) -> list[dict]:
    """What the hub's table holds for an original file, columns that are not needed included."""
    raw = lines_of(path)
    if task == "SST-2":
        return [{"idx": i, "sentence": r["sentence"], "label": int(r["label"])} for i, r in enumerate(raw)]
    if task in ("RTE", "CB"):
        number = {"entailment": 0, "not_entailment": 1, "contradiction": 1, "neutral": 2}
        return [{**r, "label": number[r["label"]]} for r in raw]
    if task == "BoolQ":
        return [{"question": r["question"], "answer": r["answer"], "passage": r["passage"]} for r in raw]
    if task == "COPA":
        return raw
    if task == "WiC":
        return [{**{k: v for k, v in r.items() if k != "version"}, "label": 1 if r["label"] else 0} for r in raw]
    if task == "WSC":
        return [
            {"text": r["text"], "span1_text": a, "span2_text": b, "label": int(r["label"]), "idx": r["idx"]}
            for r, (a, b) in zip(raw, WSC_FIXED, strict=True)
        ]
    if task == "MultiRC":
        return [
            {"paragraph": r["passage"]["text"], "question": q["question"], "answer": a["text"], "label": a["label"]}
            for r in raw
            for q in r["passage"]["questions"]
            for a in q["answers"]
        ]
    if task == "ReCoRD":
        rows = []
        for r in raw:
            text = r["passage"]["text"]
            spans = sorted(r["passage"]["entities"], key=lambda span: span["start"])
            names = [text[span["start"] :][: span["end"] + 1 - span["start"]] for span in spans]
            for q in r["qas"]:
                rows.append(
                    {
                        "passage": text,
                        "query": q["query"],
                        "entities": list(dict.fromkeys(names)),  # here in the order of the text: any order is allowed
                        "entity_spans": {"text": names},
                        "answers": list(dict.fromkeys(a["text"] for a in q["answers"])),
                    }
                )
        return rows
    if task == "SQuAD":
        return [
            {
                "id": q["id"],
                "title": article["title"],
                "context": paragraph["context"],
                "question": q["question"],
                "answers": {
                    "text": [a["text"] for a in q["answers"]],
                    "answer_start": [a["answer_start"] for a in q["answers"]],
                },
            }
            for article in raw["data"]
            for paragraph in article["paragraphs"]
            for q in paragraph["qas"]
        ]
    rows = []
    for section, passage in raw.items():
        for q in passage["qa_pairs"]:
            spans, kinds = [], []
            for answer in q["validated_answers"] if split == "validation" else [q["answer"]]:
                day, month, year = (answer["date"].get(part, "") for part in ("day", "month", "year"))
                if answer["number"]:
                    spans, kinds = spans + [answer["number"]], kinds + ["number"]
                elif day or month or year:
                    spans, kinds = spans + [f"{day} {month} {year}".strip()], kinds + ["date"]
                else:
                    spans, kinds = spans + answer["spans"], kinds + ["span"] * len(answer["spans"])
            if q["query_id"] != "506cd005-075c-4b27-a281-58389adb0ac3":  # the one that the hub leaves out
                rows.append(
                    {
                        "section_id": section,
                        "query_id": q["query_id"],
                        "passage": passage["passage"],
                        "question": q["question"],
                        "answers_spans": {"spans": spans, "types": kinds},
                    }
                )
    return rows


def one_line(error) -> str:
    """The message of an error that pytest caught, which must be one short line."""
    text = str(error.value)
    assert "\n" not in text and len(text) < 500
    return text
