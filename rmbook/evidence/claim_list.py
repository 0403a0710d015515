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
CURVATURE = "tests/landscape/test_curvature.py::test_the_norm_of_a_masked_net_is_that_of_the_dense_hessian"
FIFTY = (
    "All seeds train on the same fifty examples, and other fifties move the gap by several points, as the chapter "
    "shows: weak evidence."
)
NO_GPU = "Its runs need GPUs and the model hub; the grid is ready: `rmbook sweep run {}`."

METHOD = (
    Claim(
        name="stored_compactly", sources=("Figure 2",),
        statement="The trained entries are stored compactly, as vectors.",
        chapter="what_a_step_costs", cell="cell-45", test="tests/adapters/test_adapter.py::test_the_file_is_small",
        setting=STATED, measure=theory.stored_compactly,
    ),
)
SCORES = (
    Claim(
        name="masks_match_opt", sources=("Table 1", "Table 5", "Figure 1"),
        statement="On OPT and eleven tasks, random masks are on a par with LoRA and full fine-tuning.",
        chapter="tables_reread", cell="cell-21",
        test="tests/sweeps/test_grids.py::test_grids_of_tables_hold_what_the_tables_hold",
        remark=NO_GPU.format("table5") + " The printed numbers are re-read in {doc}`tables_reread`.",
    ),
    Claim(
        name="masks_match_minilm", sources=("Table 1", "Table 5", "Section 4.2"),
        statement="Random masks match full fine-tuning on a pretrained language model.",
        chapter="bigger_steps", cell="claim-minilm-rates", test=BY_DEV, setting=SMALL, records=(MINILM,),
        measure=partial(measured.masks_match, "minilm_grid", 0.1),
        remark="MiniLM (22.6 million parameters) on generated sentences, in place of OPT and the paper's tasks.",
    ),
    Claim(
        name="masks_match_vision", sources=("Table 2",),
        statement="Random masks match full fine-tuning in vision, with a fixed head.",
        chapter="bigger_steps", cell="claim-accuracy-stays", test=REPEATS, setting=SMALL, records=(GRID,),
        measure=partial(measured.masks_match, "vit_grid", 0.1),
        remark=(
            "A transformer of 202,186 parameters on mirrored digits, in place of CLIP ViT-B/16 on five sets of images,"
            " whose grid is ready: `rmbook sweep run table2`."
        ),
    ),
    Claim(
        name="sparse_masks_match_vision", sources=("Table 2",),
        statement="So do masks that train less than 1 % of the parameters.",
        chapter="bigger_steps", cell="claim-accuracy-stays", test=REPEATS, setting=SMALL, records=(GRID,),
        measure=partial(measured.masks_match, "vit_grid", 0.01),
        remark="The paper says itself that larger models bear sparser masks; this one is tiny.",
    ),
    Claim(
        name="masks_match_llama", sources=("Table 4",),
        statement="Random masks are robust to the choice of the base model: Llama-2-7b.",
        chapter="fine_tuning_llama", cell="cell-34",
        test="tests/methods/test_families.py::test_masks_train_in_every_family_and_come_back",
        remark=NO_GPU.format("table4"),
    ),
    Claim(
        name="larger_models_sparser_masks", sources=("Table 5", "Section 4.2"),
        statement="Larger models are more amenable to sparse masks.",
        chapter="tables_reread", cell="cell-23", test=TABLES, setting=STATED,
        measure=partial(theory.printed_averages, 1e-5, 1e-3),
        remark=(
            "Computed from the paper's printed table, not from runs of ours. How much of it is noise of the test sets,"
            " {doc}`tables_reread` shows."
        ),
    ),
    Claim(
        name="full_gains_most_from_data", sources=("Table 3",),
        statement="With more data, full fine-tuning gains most.",
        chapter="how_much_data", cell="claim-gap", test=BY_DEV, setting=SMALL, records=("science/vit_sizes",),
        measure=measured.data_helps_full, remark=FIFTY,
    ),
    Claim(
        name="sparse_wins_with_few_data", sources=("Section 1",),
        statement="With few data, training few parameters beats full fine-tuning.",
        chapter="how_much_data", cell="claim-gap", test=BY_DEV, setting=SMALL, records=("science/vit_sizes",),
        measure=measured.sparse_wins_with_few_data, remark=FIFTY,
    ),
)
RATES = (
    Claim(
        name="rates_rise_vision", sources=("Figure 3", "Section 4.2"),
        statement="Sparser masks need larger learning rates.",
        chapter="bigger_steps", cell="claim-best-rate-rises", test=REPEATS, setting=SMALL, records=(GRID,),
        measure=partial(measured.rates_rise, "vit_grid"),
    ),
    Claim(
        name="rates_rise_language", sources=("Figure 6", "Figure 7", "Figure 8"),
        statement="They do so on a pretrained language model.",
        chapter="bigger_steps", cell="claim-minilm-rates", test=BY_DEV, setting=SMALL, records=(MINILM,),
        measure=partial(measured.rates_rise, "minilm_grid"), remark="One task in place of ten.",
    ),
    Claim(
        name="table_6_slopes", sources=("Table 6",),
        statement="The best learning rate has a negative relation to the number of parameters.",
        chapter="one_learning_rate", cell="claim-table-6-within-a-step",
        test="tests/training/test_learning_rate.py::test_the_papers_best_rates_follow_the_law", setting=STATED,
        measure=partial(theory.slopes_of, 6),
        remark="Computed from the printed rates; WSC is left out, as all its rates tie.",
    ),
    Claim(
        name="table_7_rates", sources=("Table 7",),
        statement="Other methods want much smaller rates than sparse masks.",
        chapter="one_learning_rate", cell="claim-table-6-within-a-step", test=TABLES, setting=STATED,
        measure=theory.baselines_want_small_rates, remark="Computed from the printed rates; WSC is left out.",
    ),
    Claim(
        name="table_9_slopes", sources=("Table 9",),
        statement="The best rate of structured masks rises as they get sparser, too.",
        chapter="does_randomness_matter", cell="claim-paper-structured", test=TABLES, setting=STATED,
        measure=partial(theory.slopes_of, 9), remark="Computed from the printed rates; WSC is left out.",
    ),
    Claim(
        name="large_rates_spoil_others", sources=("Section 4.2",),
        statement="Rates that sparse masks need spoil full fine-tuning.",
        chapter="bigger_steps", cell="claim-accuracy-stays", test=REPEATS, setting=SMALL, records=(GRID,),
        measure=measured.others_break,
        remark="The best epoch by dev loss is taken, which softens the fall: it is often the first one.",
    ),
)
LANDSCAPE = (
    Claim(
        name="hessian_before", sources=("Figure 4a",),
        statement="Sparser masks have a smaller Hessian norm, before training.",
        chapter="flatter_networks", cell="claim-hessian-falls", test=CURVATURE, setting=SMALL, records=(HESSIAN,),
        measure=partial(measured.hessian_falls, "vit", "before"),
    ),
    Claim(
        name="hessian_after", sources=("Figure 4a",),
        statement="The Hessian norm is smaller after training, too.",
        chapter="flatter_networks", cell="claim-after-training", test=CURVATURE, setting=SMALL, records=(HESSIAN,),
        measure=partial(measured.hessian_falls, "vit", "after"),
    ),
    Claim(
        name="hessian_minilm", sources=("Figure 9",),
        statement="So it is on other data and models: MiniLM, before training.",
        chapter="flatter_networks", cell="claim-hessian-falls-minilm", test=CURVATURE, setting=SMALL,
        records=("science/hessian_minilm",), measure=partial(measured.hessian_falls, "minilm", "before"),
    ),
    Claim(
        name="steps_make_up", sources=("Figure 4b",),
        statement="Longer training makes up for a small learning rate, monotonically.",
        chapter="small_steps_long_walks", cell="claim-small-rate-rises", test=REPEATS, setting=SMALL,
        records=("science/vit_steps",), measure=measured.steps_make_up,
    ),
    Claim(
        name="steps_make_up_elsewhere", sources=("Figure 10",),
        statement="So it is at other densities and rates.",
        chapter="small_steps_long_walks", cell="claim-small-rate-rises", test=REPEATS, setting=SMALL,
        records=("science/vit_steps",), measure=partial(measured.steps_make_up, 0.1, 1e-4),
    ),
    Claim(
        name="distance_rises", sources=("Figure 4c",),
        statement="Sparser masks end further from the pretrained weights.",
        chapter="further_away", cell="claim-distance-rises", test=REPEATS, setting=SMALL, records=(GRID,),
        measure=partial(measured.distance_rises, "vit_grid"),
    ),
    Claim(
        name="distance_rises_minilm", sources=("Figure 11",),
        statement="So it is on other data and models: MiniLM.",
        chapter="further_away", cell="claim-distance-rises", test=BY_DEV, setting=SMALL, records=(MINILM,),
        measure=partial(measured.distance_rises, "minilm_grid"),
    ),
    Claim(
        name="structure_costs", sources=("Figure 5", "Table 8"),
        statement="Structured masks are worse, and fall faster, than random ones.",
        chapter="does_randomness_matter", cell="claim-columns-behind",
        test="tests/evidence/test_mask_choices.py::test_every_choice_gives_about_the_same_count", setting=SMALL,
        records=("science/vit_choices",), measure=measured.structure_costs,
    ),
    Claim(
        name="pretraining_matters", sources=("Section 1", "Section 4.3"),
        statement="It is the pretrained weights that make so few suffice.",
        chapter="it_is_the_pretraining", cell="claim-random-far-behind", test=BY_DEV, setting=SMALL,
        records=("science/vit_starts",), measure=measured.pretraining_matters,
    ),
)
THEORY = (
    Claim(
        name="eigenvalues_follow_density", sources=("Section 5",),
        statement="The Hessian's eigenvalues fall in proportion to the density.",
        chapter="masked_linear_regression", cell="cell-09",
        test="tests/theory/test_regression.py::test_mean_eigenvalue_sum_is_p_times_the_whole", setting=STATED,
        measure=theory.eigenvalues_follow_density,
    ),
    Claim(
        name="theorem_5_1", sources=("Theorem 5.1",),
        statement="Eigenvalues deviate from p λ by at most the bound (second term corrected).",
        chapter="flatter_landscape", cell="cell-10",
        test="tests/theory/test_bounds.py::test_both_forms_of_theorem_5_1_hold_in_1_minus_delta_of_2000_masks",
        setting=STATED, measure=theory.corrected_theorem_holds,
    ),
    Claim(
        name="theorem_5_1_as_printed", sources=("Theorem 5.1",),
        statement="The same bound as it is printed.",
        chapter="proofs", cell="cell-15",
        test="tests/theory/test_bounds.py::test_theorem_5_1_as_printed_is_false_and_corrected_is_true", setting=STATED,
        measure=theory.printed_theorem_fails,
        remark="A slip in the second term's units: it is 1/(d n² r⁴) where the proof gives d n² r⁴.",
    ),
    Claim(
        name="proposition_5_2", sources=("Proposition 5.2",),
        statement="Gradient descent converges if and only if η < 2n/λ₁.",
        chapter="how_large_a_step", cell="cell-06",
        test="tests/theory/test_descent.py::test_stability_flips_within_1_percent_of_2n_over_the_largest_eigenvalue",
        setting=STATED, measure=theory.border_is_sharp,
    ),
    Claim(
        name="proposition_5_3", sources=("Proposition 5.3",),
        statement="The expected squared norm of the limit is at least Σ σ²/λᵢ.",
        chapter="further_from_home", cell="cell-08",
        test="tests/theory/test_limit.py::test_bound_of_equation_2_and_the_one_over_p_law_behind_it", setting=STATED,
        measure=theory.distance_bound_holds,
    ),
    Claim(
        name="lemma_a_1", sources=("Lemma A.1",),
        statement="The moment generating function of the deviation is bounded.",
        chapter="flatter_landscape", cell="cell-03", test="tests/theory/test_bounds.py::test_lemma_a_1", setting=STATED,
        measure=theory.generating_function_is_bounded,
    ),
)
CLAIMS = METHOD + SCORES + RATES + LANDSCAPE + THEORY
