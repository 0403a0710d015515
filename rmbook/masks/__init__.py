"""Which entries of a weight matrix are trained.

In: the shape of a matrix, a density, a seed, the name of the parameter. Out: a `Mask`, sorted positions.

    sample      `Mask`; independent random entries (section 3.1 of the paper); ratio and density
    structured  whole columns, rows or blocks; entries confined to some columns (section 4.3)
    recipe      `MaskRecipe`: the masks of a whole model, drawn again from a few settings
    scores      how others rank entries: LIFT's principal weights, gradient over weight
    reach       how many inputs and outputs a mask touches, and the rank that its change can have
"""
