"""Random masks in other libraries' own tools.

In: a model and a tool of Hugging Face. Out: the masks of `rmbook.engine` there, with its files, switches and trainers.

    peft_config   `RandomMaskConfig`, and its registration as a method of `peft`
    peft_tuner    what `peft` calls to put masks on a model and to load values
    peft_layer    a linear layer with the masks of several adapters
    peft_values   what one adapter has in one layer
    peft_merging  the part of it that leaves W + S in the weight
    peft_shards   the part of it for a base that FSDP2 shards
    peft_checks   whether a layer can have a mask, and whether loaded values fit it
    peft_folder   between rmbook's adapter files and peft's folders
"""
