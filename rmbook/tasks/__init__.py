"""The paper's sixteen tasks: eleven of language, five sets of images.

In: the name of a task, and a folder of original files or the hub. Out: a `Task`, whose methods give all that a run
needs: its examples, a model that fits, the examples as the objective takes them, the objective, the model's answers and
their score, a fingerprint of the data.

This room lies above models and training, so that a task can call them: they know prompts, options, class names and
batches, and nothing of tasks. Whoever has a `Task` need not know of which kind it is.

    catalog           `find_task`, `load_examples`, all tasks by name
    task              `Task`: the methods that all of them have
    language, images  how either kind fills them in, and the tables of the tasks
    examples          `Example`, one row of a data set of language, checked
    original_files    rows from the distributions' own files; hub: from the Hugging Face hub
    image_example     `ImageExample`, one labelled image
    image_files       labelled images from files or the hub; idx_files: MNIST's; mat_files: SVHN's; image_folders:
                      folders of classes
    image_batches     batches of images, prepared by worker processes
    splits            which examples train, choose the epoch, and test
    prompts           the text that a language model reads
    metrics           F1 of words
"""
