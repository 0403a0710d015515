"""The paper's eight methods, one call each.

In: a model, the name of a method and its settings. Out: an `AppliedMethod`, the handle to train, save and remove it.

    apply           `apply_method`, `METHODS`
    applied_method  `AppliedMethod`
    settings        the settings of each method
    adalora, houlsby, prefix
                    the methods that peft does not have in the paper's form
    architectures   where OPT, Llama and others keep what a method changes
    saved           one file for what any method has trained
"""
