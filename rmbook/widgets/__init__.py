"""Figures that a reader moves: in a live notebook, and in the static page without a kernel.

In: results, as data frames. Out: a widget of anywidget, with a picture and a page's script for where it is not alive.

    explorer             curves of a result over sliders
    regression_explorer  the explorer of masked linear regression
    networks_explorer    the same for logistic regression and a network of two layers
    bounds_explorer      deviations of eigenvalues beside what bounds allow
    table_comparison     two rows of a table of scores, side by side
    method_explorer      many runs by one measure, in order
    page                 the HTML that both kinds are on a page without a kernel
"""
