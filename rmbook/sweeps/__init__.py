"""Many runs: grids, the ledger of who does what, reports.

In: a grid, a small YAML file. Out: a folder with one run folder a run; tables and reports of it.

    grid              reading and expanding grids; grid_files holds the ready-made ones
    local             the sweep in one process: `run_sweep`
    ray_engine        the sweep on several processes; ray_cluster connects to Ray
    driver            claiming, performing and settling one run; what a run is
    queue             which run is next; halving decides it when learning rates compete
    ledger            who works on what, in ledger_file; liveness says who is alive
    folder            the sweep's folder, and what a result must have
    state             what ledger and folders say together
    best_rate         the rule for the best learning rate
    table, report, report_page, verdicts
                      what came out, and the paper's numbers beside it
    listener, display progress, and how it is shown on a terminal
    slurm             plain commands for a cluster
"""
