"""Numbers that others have published, the paper's above all, and statistics on them.

In: tables as CSV files (results/paper, results/peft_method_comparison). Out: data frames, parameter counts, intervals.

    tables           the paper's nine tables as they are printed
    models           parameter counts of the paper's models, without their weights
    statistics       intervals, paired comparisons, parts of a variance
    peft_comparison  the runs of peft's own comparison of methods
"""
