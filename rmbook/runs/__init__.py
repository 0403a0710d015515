"""One fine-tuning run in one folder.

In: a `RunConfig`. Out: a folder with config.json, metrics.jsonl, adapter.safetensors and result.json.

    config        `RunConfig`: every setting of a run
    run           `start_run`, `resume_run`
    prepare       examples, model and method, ready to train
    memory        what to change when the memory is too small
    folder        reading and writing the folder
    result        what it says of the outcome, checked
    evaluate      scoring a finished run
    describe      what a run or a method trains
    fingerprints  what a run's outcome depends on, as hashes
"""
