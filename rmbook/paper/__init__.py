"""The paper's printed numbers, and statistics on them.

In: the tables as CSV files (results/paper). Out: data frames, parameter counts, intervals.

    tables      the nine tables as they are printed
    models      parameter counts of the paper's models, without their weights
    statistics  intervals, paired comparisons, parts of a variance
"""
