"""Recorded results, and what they say of the paper's claims.

In: experiments. Out: stamped JSON files under results/, the list of claims and its page.

    experiment    one run of the vision and MiniLM chapters; backbones holds its models and data
    mask_choices  ways to choose which entries are trained
    grids         the recorded grids
    interference  what merging adapters does
    recording     writing and reading recorded results
    tiers         which model and data a chapter uses on this machine
    claim, claim_list, claim_evidence, claim_theory, claims_page
                  the paper's claims, one by one
"""
