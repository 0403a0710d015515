"""Loading models, and what a model answers to a prompt or an image.

In: the name of a model on the hub, or a folder. Out: the model with its tokenizer or preprocessing; scores, answers.

    files               finding and checking a checkpoint; safetensors only
    reading             reading its weights
    language, clip      language models; CLIP's image encoder with its fixed head
    clip_preprocessing  images as CLIP wants them
    encoding            prompts as tokens
    likelihood          log probabilities of options; option_scores scores many at once
    generation          answers that a model writes
    predict             answers and accuracy over a split
    reuse               a model that stays loaded from one run to the next
"""
