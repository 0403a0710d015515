"""The training loop, for every method.

In: a model, training and dev examples, a `TrainingConfig`. Out: the model at its best epoch, a `TrainingResult`.

    train          `train`
    config         `TrainingConfig`, `TrainingResult`, the schedule of the learning rate
    evaluation     `evaluate`: loss and accuracy over a data set
    loop           one step after the other
    accelerator    `new_accelerator`: of accelerate, with nothing from outside the run
    state          how far a run is
    objectives     what is minimised
    checkpoint     the state of an interrupted run
    learning_rate  `suggest_learning_rate`: the paper's law of density and learning rate
"""
