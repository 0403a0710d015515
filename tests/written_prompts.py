"""The paper's templates written down once more, from the rows of the hub's tables; nothing of rmbook is used."""

# {o} is the option; what stands before it is the context. One string a task, each written as the paper's runs show it.
WRITTEN = {
    "SST-2": "{sentence} It was{o}",
    "RTE": '{premise}\nDoes this mean that "{hypothesis}" is true? Yes or No?\n{o}',
    "CB": 'Suppose {premise} Can we infer that "{hypothesis}"? Yes, No, or Maybe?\n{o}',
    "BoolQ": "{passage} {question}\n{o}",
    "WSC": '{text}\nIn the previous sentence, does the pronoun "{span2_text}" refer to {span1_text}? Yes or No?\n{o}',
    "WiC": 'Does the word "{word}" have the same meaning in these two sentences? Yes, No?'
    "\n{sentence1}\n{sentence2}\n{o}",
    "MultiRC": '{paragraph}\nQuestion: {question}\nI found this answer "{answer}". Is that correct? Yes or No?\n{o}',
    "COPA": "{premise}{o}",
    "ReCoRD": "{passage}\n-{o}",
    "SQuAD": "Title: {title}\nContext: {context}\nQuestion: {question}\nAnswer:{o}",
    "DROP": "Passage: {passage}\nQuestion: {question}\nAnswer:{o}",
}
WORDS = {
    "SST-2": [" terrible", " great"],
    "RTE": ["Yes", "No"],
    "CB": ["Yes", "No", "Maybe"],
    "BoolQ": ["Yes", "No"],
    "WSC": ["No", "Yes"],
    "WiC": ["No", "Yes"],
    "MultiRC": ["No", "Yes"],
}


def fill(template: str, row: dict, option: str) -> str:
    """As str.format, but braces inside of the texts are left alone."""
    filled = ""
    while "{" in template:
        before, _, rest = template.partition("{")
        name, _, template = rest.partition("}")
        filled += before + (option if name == "o" else row[name])
    return filled + template


def written(task: str, row: dict) -> tuple[str, list[str], list[bool]]:
    """Context, the whole text for each option, and which options are right, from a row of the hub's table."""
    row, options = dict(row), WORDS.get(task)
    right = [number == row.get("label") for number in range(len(options or "12"))]
    if task == "SST-2":
        row["sentence"] = row["sentence"].strip()
    elif task == "BoolQ":
        question = row["question"] if row["question"][-1] == "?" else row["question"] + "?"
        row["question"] = question[:1].upper() + question[1:]
        right = [row["answer"], not row["answer"]]
    elif task == "WSC":
        row["span2_text"] = row["span2_text"].lower()
    elif task == "COPA":
        premise = row["premise"].rstrip()
        row["premise"] = premise[:-1] if premise[-1:] == "." else premise
        row["premise"] += " so " if row["question"] == "effect" else " because "
        options = []
        for choice in (row["choice1"], row["choice2"]):
            end = choice.find(" ") if " " in choice else len(choice)
            options.append(choice if choice[:end] == "I" else choice[:end].lower() + choice[end:])
    elif task == "ReCoRD":
        row["passage"] = "- ".join(row["passage"].split("@highlight\n"))
        entities = sorted(set(row["entities"]))
        options = [" " + entity.join(row["query"].split("@placeholder")) for entity in entities]
        right = [entity in row["answers"] for entity in entities]
    elif task in ("SQuAD", "DROP"):
        answers = row["answers"]["text"] if task == "SQuAD" else row["answers_spans"]["spans"]
        row["question"] = row["question"].strip()
        options, right = [f" {answers[0]}\n"], []
    template = WRITTEN[task]
    return fill(template, row, ""), [fill(template, row, option) for option in options], right
