"""The command `rmbook`.

In: arguments of the command line. Out: calls of the other rooms; one line for every mistake.

    app        `train`, `evaluate`, `describe`, `generate`
    sweep      `sweep run`, `status`, `export`, `emit`, `grids`
    report     `report`
    record     `record`, `claims`
    options    the flags
    errors     exit codes
    interrupt  Ctrl-C at any moment
"""
