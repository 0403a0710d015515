"""Original distribution files (GLUE tsv, SuperGLUE jsonl, SQuAD and DROP json) read into the hub's columns.

What the hub's own conversion did is done here too: labels become class numbers, nested files one row a question,
WSC's spans are those of "wsc.fixed", and DROP's numbers, dates and spans become strings.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from rmbook.errors import TaskError
from rmbook.tasks.task import SPLITS, Task


def read_rows(task: Task, split: str, data_dir: str | os.PathLike) -> tuple[str, list[dict]]:
    """The rows of one split, with the columns that the hub has.

    Args:
        task: which task.
        split: "train" or "validation".
        data_dir: folder that holds the task's original files, or its original folder (such as RTE/) with them.

    Returns:
        source: path of the file, for messages.
        rows: one dict a row.

    Raises:
        TaskError: no such file; a line that is not JSON or has too few columns; a field or label that is unknown.
    """
    path = find_file(task, split, Path(data_dir))
    try:
        with path.open(encoding="utf-8-sig") as file:
            if path.suffix == ".tsv":
                originals = list(_tsv_lines(path, file))
            elif path.suffix == ".jsonl":  # read by lines of the file: splitlines() would also split inside of texts
                lines = ((number, line) for number, line in enumerate(file, 1) if line.strip())
                originals = [(number, _parse(path, line, number)) for number, line in lines]
            else:
                originals = [(1, _parse(path, file.read(), 1))]
    except UnicodeDecodeError as error:
        raise TaskError(f"{path} is not UTF-8 text ({error.reason}, byte {error.start}): get it again.") from None
    rows = []
    for number, original in originals:
        try:
            rows.extend(_READERS.get(task.name, _plain)(task, split, original))
        except KeyError as error:
            raise TaskError(
                f"{path}, line {number}: field {error} of {task.name}'s original format is missing: is this its file?"
            ) from None
        except (TypeError, AttributeError, IndexError) as error:
            raise TaskError(f"{path}, line {number}: not {task.name}'s original format ({error}).") from None
        except TaskError as error:
            raise TaskError(f"{path}, line {number}: {error}") from None
    return str(path), rows


def find_file(task: Task, split: str, data_dir: Path) -> Path:
    """A split's original file, in data_dir or in the task's own folder there; raises TaskError if there is none."""
    if split not in SPLITS:
        raise TaskError(f"split must be train or validation, got {split!r}.")
    candidates = [data_dir / task.files[split], data_dir / task.folder / task.files[split]]
    for path in candidates:
        if path.is_file():
            return path
    raise TaskError(f"{task.name} has no {split} file: neither {candidates[0]} nor {candidates[1]} exists.")


def _parse(path: Path, text: str, number: int):
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as error:
        raise TaskError(f"{path}, line {number + error.lineno - 1}: not JSON ({error.msg}): is it complete?") from None
    except RecursionError:
        raise TaskError(f"{path}, line {number}: nested too deeply: is this {path.name} of the task?") from None
    except UnicodeEncodeError as error:  # JSON can spell one half of a pair, of which no text is made
        near = error.object[max(0, error.start - 30) : error.start + 1]
        raise TaskError(f"{path}, line {number}: half a character after {near!r}: was the text cut?") from None
    except ValueError:
        raise TaskError(f"{path}, line {number}: a number of more than 4,300 digits: is this its file?") from None


def _tsv_lines(path: Path, file) -> Iterator[tuple[int, dict]]:
    header = file.readline().rstrip("\n").split("\t")
    for number, line in enumerate(file, 2):
        if cells := line.rstrip("\n"):
            cells = cells.split("\t")
            if len(cells) != len(header):
                raise TaskError(f"{path}, line {number}: {len(cells)} columns, expected {len(header)}: {header}.")
            yield number, dict(zip(header, cells, strict=True))


def _label(task: Task, value) -> int:
    if value not in task.labels:
        raise TaskError(f"label {value!r} is unknown: {task.name}'s are {', '.join(map(repr, task.labels))}.")
    return task.labels.index(value)


def _plain(task: Task, split: str, original: dict) -> list[dict]:
    row = {column: original[column] for column in task.columns}
    return [row | {"label": _label(task, row["label"])} if "label" in row else row]


def _wsc(task: Task, split: str, original: dict) -> list[dict]:
    text, target = original["text"], original["target"]
    row = {"text": text, "label": _label(task, original["label"])}
    for span in ("span1", "span2"):
        row[f"{span}_text"] = _fixed_span(text, target[f"{span}_text"], target[f"{span}_index"])
    return [row]


def _fixed_span(text: str, span: str, word: int) -> str:
    """The span as "wsc.fixed" has it: a span that is not in the text takes the case of the word it starts at."""
    if span in text or span in ("Kamenev and Zinoviev", "Kamenev, Zinoviev, and Stalin"):  # interrupted in the text
        return span
    lower = text.split()[word][0].islower()
    return ((span[0].lower() if lower else span[0].upper()) + span[1:]).rstrip(".").replace("\n", " ")


def _multirc(task: Task, split: str, original: dict) -> Iterator[dict]:
    passage = original["passage"]
    for question in passage["questions"]:
        for answer in question["answers"]:
            yield {
                "paragraph": passage["text"],
                "question": question["question"],
                "answer": answer["text"],
                "label": _label(task, answer["label"]),
            }


def _record(task: Task, split: str, original: dict) -> Iterator[dict]:
    passage = original["passage"]
    entities = {passage["text"][entity["start"] : entity["end"] + 1] for entity in passage["entities"]}
    for question in original["qas"]:
        yield {
            "passage": passage["text"],
            "query": question["query"],
            "entities": sorted(entities),
            "answers": sorted({answer["text"] for answer in question["answers"]}),
        }


def _squad(task: Task, split: str, original: dict) -> Iterator[dict]:
    for article in original["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                yield {
                    "title": article["title"],
                    "context": paragraph["context"],
                    "question": question["question"],
                    "answers": {"text": [answer["text"] for answer in question["answers"]]},
                }


def _drop(task: Task, split: str, original: dict) -> Iterator[dict]:
    for section in original.values():
        for question in section["qa_pairs"]:
            answers = [question["answer"]] if split == "train" else question["validated_answers"]
            spans = _drop_spans(answers)
            if spans:  # as on the hub, where 9 questions of train and 1 of validation are left out
                yield {
                    "passage": section["passage"],
                    "question": question["question"],
                    "answers_spans": {"spans": spans},
                }


def _drop_spans(answers: list[dict]) -> list[str]:
    """The strings of all the answers to one question; none where one of them is of two kinds at once."""
    spans = []
    for answer in answers:
        date = " ".join(answer["date"].get(part, "") for part in ("day", "month", "year")).strip()
        kinds = [[answer["number"]] if answer["number"] != "" else [], [date] if date else [], answer["spans"]]
        if sum(map(bool, kinds)) > 1:
            return []
        spans.extend(text for kind in kinds for text in kind)
    return spans


_READERS = {  # of what is not plain rows with the columns of the hub
    "WSC": _wsc,
    "MultiRC": _multirc,
    "ReCoRD": _record,
    "SQuAD": _squad,
    "DROP": _drop,
}
