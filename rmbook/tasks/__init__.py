"""The paper's sixteen tasks: eleven of language, five sets of images.

In: the name of a task, and a folder of original files or the hub. Out: records, splits, prompts and scores.

    task            `Task`, `TASKS`, `find_task`
    image_task      the five sets of images: their classes and templates
    records         `load_records`, from original_files, image_files or hub
    splits          which records train, choose the epoch, and test
    prompts         the text that a language model reads
    metrics         accuracy and F1
"""
