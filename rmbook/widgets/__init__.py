"""Figures that a reader moves, and questions that answer: in a live notebook, and in the static page without a kernel.

In: results, as data frames. Out: a figure, or the HTML of one, that needs no kernel and no network.

    trainer              a small network that trains in the page, by full fine-tuning and with a mask
    explorer             a map and curves of a result over density and learning rate
    regression_explorer  the explorer of masked linear regression
    networks_explorer    the same for logistic regression and a network of two layers
    curve_explorer       a recorded sweep: a slider, curves, and the spread between bases or seeds
    collapse_explorer    a power law: a slider for the exponent that lays curves on top of each other
    bounds_explorer      deviations of eigenvalues beside what bounds allow
    table_comparison     two rows of a table of scores, side by side
    method_explorer      many runs by one measure, in order
    predict              a question whose answer is hidden until an option is chosen
    check, answers       what is off with an answer to an open exercise
    page, common.*       the HTML, the script and the style that all figures share
"""
