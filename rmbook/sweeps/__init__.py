"""Many runs: grids, the ledger of who does what, reports.

In: a grid, a small YAML file. Out: a folder with one run folder a run; tables and reports of it.

    grid              reading and expanding grids; grid_files holds the ready-made ones
    local             the sweep in one process
    halving           which run is next, when learning rates compete
    ray_engine        the sweep on several processes; ray_cluster connects to Ray
    driver            claiming, performing and settling one run
    ledger            who works on what; liveness says who is alive
    folder            the sweep's folder
    table, report, report_page, verdicts
                      what came out, and the paper's numbers beside it
    display           progress on the terminal
    slurm             plain commands for a cluster
"""
