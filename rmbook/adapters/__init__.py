"""Trained values as files, and several of them on one model.

In: a `RandomMask`. Out: a safetensors file or a folder, and the way back.

    adapter_file    rmbook's own format: values, seed, hashes
    adapter_header  what such a file says of itself, checked before it is used
    base            the fingerprint of the model that an adapter belongs to
    errors          what is raised
    bank          switching between adapters, and adding them up
    merged        a plain checkpoint of transformers, with the values in the weights
    shira         the format of SHiRA in peft, in and out; shira_folder reads and writes its files
"""
