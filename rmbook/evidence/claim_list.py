"""The paper's claims, each with where the book shows it, the test behind it and how its evidence is computed."""

from functools import partial

from rmbook.evidence import claim_evidence as measured
from rmbook.evidence import claim_theory as theory
from rmbook.evidence.claim import Claim

STATED, SMALL = "as stated", "small models"
GRID, MINILM, HESSIAN = "science/vit_grid", "science/minilm_grid", "science/hessian"
REPEATS = "tests/evidence/test_experiments.py::test_the_recorded_grid_repeats_here"
BY_DEV = "tests/evidence/test_experiments.py::test_the_best_rate_is_chosen_by_dev_and_edges_are_marked"
TABLES = "tests/paper/test_paper_tables.py::test_a_table_is_the_one_read_from_the_paper"
CURVATURE = "tests/landscape/test_curvature.py::test_norm_and_eigenvalues_of_a_masked_net_are_those_of_the_dense_hessian"
FIFTY = (
    "All seeds train on the same fifty examples, and other fifties move the gap by several points, as the chapter "
    "shows: weak evidence."
)
NO_GPU = "Its runs need GPUs and the model hub; the grid is ready: `rmbook sweep run {}`."

METHOD = (
    Claim(
        *("stored_compactly", ("Figure 2",), "The trained entries are stored compactly, as vectors."),
        *("what_a_step_costs", "cell-45", "tests/adapters/test_adapter.py::test_the_file_is_small"),
        *(STATED, (), theory.stored_compactly),
    ),
)
SCORES = (
    Claim(
        *("masks_match_opt", ("Table 1", "Table 5", "Figure 1")),
        "On OPT and eleven tasks, random masks are on a par with LoRA and full fine-tuning.",
        *("tables_reread", "cell-21", "tests/sweeps/test_grids.py::test_grids_of_tables_hold_what_the_tables_hold"),
        remark=NO_GPU.format("table5") + " The printed numbers are re-read in {doc}`tables_reread`.",
    ),
    Claim(
        *("masks_match_minilm", ("Table 1", "Table 5", "Section 4.2")),
        "Random masks match full fine-tuning on a pretrained language model.",
        *("bigger_steps", "claim-minilm-rates", BY_DEV, SMALL, (MINILM,)),
        partial(measured.masks_match, "minilm_grid", 0.1),
        "MiniLM (22.6 million parameters) on generated sentences, in place of OPT and the paper's tasks.",
    ),
    Claim(
        *("masks_match_vision", ("Table 2",), "Random masks match full fine-tuning in vision, with a fixed head."),
        *("bigger_steps", "claim-accuracy-stays", REPEATS, SMALL, (GRID,)),
        partial(measured.masks_match, "vit_grid", 0.1),
        "A transformer of 202,186 parameters on mirrored digits, in place of CLIP ViT-B/16 on five sets of images, "
        "whose grid is ready: `rmbook sweep run table2`.",
    ),
    Claim(
        *("sparse_masks_match_vision", ("Table 2",), "So do masks that train less than 1 % of the parameters."),
        *("bigger_steps", "claim-accuracy-stays", REPEATS, SMALL, (GRID,)),
        partial(measured.masks_match, "vit_grid", 0.01),
        "The paper says itself that larger models bear sparser masks; this one is tiny.",
    ),
    Claim(
        *("masks_match_llama", ("Table 4",), "Random masks are robust to the choice of the base model: Llama-2-7b."),
        *("fine_tuning_llama", "cell-34", "tests/methods/test_families.py::test_masks_train_in_every_family_and_come_back"),
        remark=NO_GPU.format("table4"),
    ),
    Claim(
        *(
            "larger_models_sparser_masks",
            ("Table 5", "Section 4.2"),
            "Larger models are more amenable to sparse masks.",
        ),
        *("tables_reread", "cell-23", TABLES, STATED, (), partial(theory.printed_averages, 1e-5, 1e-3)),
        "Computed from the paper's printed table, not from runs of ours. How much of it is noise of the test sets, "
        "{doc}`tables_reread` shows.",
    ),
    Claim(
        *("full_gains_most_from_data", ("Table 3",), "With more data, full fine-tuning gains most."),
        *("how_much_data", "claim-gap", BY_DEV, SMALL, ("science/vit_sizes",), measured.data_helps_full),
        FIFTY,
    ),
    Claim(
        *(
            "sparse_wins_with_few_data",
            ("Section 1",),
            "With few data, training few parameters beats full fine-tuning.",
        ),
        *("how_much_data", "claim-gap", BY_DEV, SMALL, ("science/vit_sizes",), measured.sparse_wins_with_few_data),
        FIFTY,
    ),
)
RATES = (
    Claim(
        *("rates_rise_vision", ("Figure 3", "Section 4.2"), "Sparser masks need larger learning rates."),
        *("bigger_steps", "claim-best-rate-rises", REPEATS, SMALL, (GRID,), partial(measured.rates_rise, "vit_grid")),
    ),
    Claim(
        *("rates_rise_language", ("Figure 6", "Figure 7", "Figure 8"), "They do so on a pretrained language model."),
        *("bigger_steps", "claim-minilm-rates", BY_DEV, SMALL, (MINILM,), partial(measured.rates_rise, "minilm_grid")),
        "One task in place of ten.",
    ),
    Claim(
        *(
            "table_6_slopes",
            ("Table 6",),
            "The best learning rate has a negative relation to the number of parameters.",
        ),
        *(
            "one_learning_rate",
            "claim-table-6-within-a-step",
            "tests/training/test_learning_rate.py::test_the_papers_best_rates_follow_the_law",
        ),
        *(STATED, (), partial(theory.slopes_of, 6)),
        "Computed from the printed rates; WSC is left out, as all its rates tie.",
    ),
    Claim(
        *("table_7_rates", ("Table 7",), "Other methods want much smaller rates than sparse masks."),
        *("one_learning_rate", "claim-table-6-within-a-step", TABLES, STATED, (), theory.baselines_want_small_rates),
        "Computed from the printed rates; WSC is left out.",
    ),
    Claim(
        *("table_9_slopes", ("Table 9",), "The best rate of structured masks rises as they get sparser, too."),
        *("does_randomness_matter", "claim-paper-structured", TABLES, STATED, (), partial(theory.slopes_of, 9)),
        "Computed from the printed rates; WSC is left out.",
    ),
    Claim(
        *("large_rates_spoil_others", ("Section 4.2",), "Rates that sparse masks need spoil full fine-tuning."),
        *("bigger_steps", "claim-accuracy-stays", REPEATS, SMALL, (GRID,), measured.others_break),
        "The best epoch by dev loss is taken, which softens the fall: it is often the first one.",
    ),
)
LANDSCAPE = (
    Claim(
        *("hessian_before", ("Figure 4a",), "Sparser masks have a smaller Hessian norm, before training."),
        *("flatter_networks", "claim-hessian-falls", CURVATURE, SMALL, (HESSIAN,)),
        partial(measured.hessian_falls, "vit", "before"),
    ),
    Claim(
        *("hessian_after", ("Figure 4a",), "The Hessian norm is smaller after training, too."),
        *("flatter_networks", "claim-after-training", CURVATURE, SMALL, (HESSIAN,)),
        partial(measured.hessian_falls, "vit", "after"),
    ),
    Claim(
        *("hessian_minilm", ("Figure 9",), "So it is on other data and models: MiniLM, before training."),
        *("flatter_networks", "claim-hessian-falls-minilm", CURVATURE, SMALL, ("science/hessian_minilm",)),
        partial(measured.hessian_falls, "minilm", "before"),
    ),
    Claim(
        *("steps_make_up", ("Figure 4b",), "Longer training makes up for a small learning rate, monotonically."),
        *("small_steps_long_walks", "claim-small-rate-rises", REPEATS, SMALL, ("science/vit_steps",)),
        measured.steps_make_up,
    ),
    Claim(
        *("steps_make_up_elsewhere", ("Figure 10",), "So it is at other densities and rates."),
        *("small_steps_long_walks", "claim-small-rate-rises", REPEATS, SMALL, ("science/vit_steps",)),
        partial(measured.steps_make_up, 0.1, 1e-4),
    ),
    Claim(
        *("distance_rises", ("Figure 4c",), "Sparser masks end further from the pretrained weights."),
        *(
            "further_away",
            "claim-distance-rises",
            REPEATS,
            SMALL,
            (GRID,),
            partial(measured.distance_rises, "vit_grid"),
        ),
    ),
    Claim(
        *("distance_rises_minilm", ("Figure 11",), "So it is on other data and models: MiniLM."),
        *("further_away", "claim-distance-rises", BY_DEV, SMALL, (MINILM,)),
        partial(measured.distance_rises, "minilm_grid"),
    ),
    Claim(
        *("structure_costs", ("Figure 5", "Table 8"), "Structured masks are worse, and fall faster, than random ones."),
        *(
            "does_randomness_matter",
            "claim-columns-behind",
            "tests/evidence/test_mask_choices.py::test_every_choice_gives_about_the_same_count",
            SMALL,
            ("science/vit_choices",),
        ),
        measured.structure_costs,
    ),
    Claim(
        *(
            "pretraining_matters",
            ("Section 1", "Section 4.3"),
            "It is the pretrained weights that make so few suffice.",
        ),
        *("it_is_the_pretraining", "claim-random-far-behind", BY_DEV, SMALL, ("science/vit_starts",)),
        measured.pretraining_matters,
    ),
)
THEORY = (
    Claim(
        *("eigenvalues_follow_density", ("Section 5",), "The Hessian's eigenvalues fall in proportion to the density."),
        *(
            "masked_linear_regression",
            "cell-09",
            "tests/theory/test_regression.py::test_mean_eigenvalue_sum_is_p_times_the_whole",
        ),
        *(STATED, (), theory.eigenvalues_follow_density),
    ),
    Claim(
        *(
            "theorem_5_1",
            ("Theorem 5.1",),
            "Eigenvalues deviate from p λ by at most the bound (second term corrected).",
        ),
        *(
            "flatter_landscape",
            "cell-10",
            "tests/theory/test_bounds.py::test_both_forms_of_theorem_5_1_hold_in_1_minus_delta_of_2000_masks",
        ),
        *(STATED, (), theory.corrected_theorem_holds),
    ),
    Claim(
        *("theorem_5_1_as_printed", ("Theorem 5.1",), "The same bound as it is printed."),
        *("proofs", "cell-15", "tests/theory/test_bounds.py::test_theorem_5_1_as_printed_is_false_and_corrected_is_true"),
        *(STATED, (), theory.printed_theorem_fails),
        "A slip in the second term's units: it is 1/(d n² r⁴) where the proof gives d n² r⁴.",
    ),
    Claim(
        *("proposition_5_2", ("Proposition 5.2",), "Gradient descent converges if and only if η < 2n/λ₁."),
        *("how_large_a_step", "cell-06"),
        "tests/theory/test_descent.py::test_stability_flips_within_1_percent_of_2n_over_the_largest_eigenvalue",
        *(STATED, (), theory.border_is_sharp),
    ),
    Claim(
        *("proposition_5_3", ("Proposition 5.3",), "The expected squared norm of the limit is at least Σ σ²/λᵢ."),
        *(
            "further_from_home",
            "cell-08",
            "tests/theory/test_limit.py::test_bound_of_equation_2_and_the_one_over_p_law_behind_it",
            STATED,
            (),
            theory.distance_bound_holds,
        ),
    ),
    Claim(
        *("lemma_a_1", ("Lemma A.1",), "The moment generating function of the deviation is bounded."),
        *("flatter_landscape", "cell-03", "tests/theory/test_bounds.py::test_lemma_a_1"),
        *(STATED, (), theory.generating_function_is_bounded),
    ),
)
CLAIMS = METHOD + SCORES + RATES + LANDSCAPE + THEORY
