"""Recorded results, and what they say of the paper's claims.

In: grids of experiments, as YAML files in recorded/. Out: stamped JSON files under results/, the list of claims and its
page.

    experiment      one run of the vision and MiniLM chapters; backbones holds its models and data
    curvature_cells the Hessian's norm before training under one mask
    mask_choices    ways to choose which entries are trained
    changes         what training did to the weights, added up and compared
    connections     what lies on the way to a solution, and between two
    interference    what becomes of two tasks when their changes are added
    language_grids  runs of a language model on a task
    grids           the recorded grids: their runs, and their results as tables
    record          recording a grid anew, as a sweep (`rmbook record`)
    recording       where recorded results are, and reading them
    inference       intervals and verdicts over several pretrained models
    tiers           which model and examples a chapter uses on this machine
    claim           a claim, its evidence and the ledger of all (`rmbook claims`); claims.yaml lists the paper's,
                    claim_evidence, claim_scores and claim_theory compute their evidence, claims_page shows them
"""
