"""Section 5 of the paper, linear regression with masked columns, and the models between that and transformers.

In: features, targets, masks. Out: eigenvalues, bounds, iterates and limits of gradient descent.

    regression  the problem, its masks and their Gram matrices
    bounds      lemma A.1 and theorem 5.1
    descent     gradient descent, step by step and in closed form; proposition 5.2
    limit       where it ends; proposition 5.3
    networks    logistic regression and two layers: descent, minibatches and Adam on a map of densities and rates
"""
