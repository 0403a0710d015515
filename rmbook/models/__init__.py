"""Loading models, and what a model answers to a prompt or an image.

In: the name of a model on the hub, or a folder; prompts as text, images. Out: the model with its tokenizer or
preprocessing; scores of options, written answers. What the prompts are about is the business of `rmbook.tasks`.

    files               finding and checking a checkpoint; safetensors only
    configuration       its config.json, checked
    reading             reading its tokenizer and weights
    language, clip      language models; CLIP's image encoder with its fixed head
    clip_preprocessing  images as CLIP wants them
    encoding            prompts as tokens
    device              where a model computes
    likelihood          log probabilities of options; option_scores scores many at once
    generation          answers that a model writes
    reuse               a model that stays loaded from one run to the next
"""
