"""The loss of a model as a function of what it trains.

In: a model with a method on it, and examples. Out: the norm of the Hessian, slices of the loss.

    landscape  `Landscape`: loss, gradient, products with the Hessian
    curvature  the Hessian's norm
    slices     the loss along a line
"""
