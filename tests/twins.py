"""Every fast path of memaudit, and the test that holds it against a slow and obvious twin.

A fast path is marked in the code by a comment that starts with `Fast path`. `tests/test_twins.py` holds this list
complete: whatever is marked stands here, whatever stands here is marked, and the tests exist.
"""

from __future__ import annotations

TWINS: dict[str, str] = {
    "memaudit.network.ablate:ablated": (
        "tests/network/test_ablate.py::test_both_give_what_a_copy_with_zeroed_weights_gives"
    ),
    "memaudit.network.ablate:without": "tests/network/test_ablate.py::test_written_over_or_multiplied_is_the_same",
    "memaudit.network.attention:projected": (
        "tests/network/test_attention.py::test_a_head_cut_on_the_way_is_one_cut_in_a_copys_weights"
    ),
    "memaudit.network.replay:Replayer": "tests/network/test_replay.py::test_a_replay_gives_the_bits_of_a_plain_pass",
    "memaudit.engine.passes:MaskGradients": (
        "tests/audits/localize/test_search.py::test_gradients_by_mask_are_those_of_scaling_the_weights"
    ),
    "memaudit.engine.copies:Copies": "tests/engine/test_copies.py::test_a_report_is_that_of_the_network_alone",
    "memaudit.engine.journal:Journal": (
        "tests/pipeline/test_identity.py::test_killed_at_any_step_the_same_command_ends_with_the_same_report"
    ),
    "memaudit.engine.train:AdamW": "tests/engine/test_train.py::test_steps_are_those_of_pytorchs_class",
    "memaudit.engine.batchnorm:reestimated": (
        "tests/erase/test_curvature.py::test_statistics_are_those_of_plain_means_over_batches"
    ),
    "memaudit.audits.localize.population:measure_population": (
        "tests/audits/localize/test_search.py::test_the_population_is_what_the_twin_measures"
    ),
    "memaudit.audits.localize.search:Search": (
        "tests/audits/localize/test_search.py::test_the_batched_search_is_the_slow_one_unit_for_unit"
    ),
    "memaudit.audits.localize.promising:Promising": (
        "tests/audits/localize/test_search.py::test_looking_ahead_is_the_slow_search_that_tries_unit_for_unit"
    ),
    "memaudit.audits.localize.ranking:ByTrial": (
        "tests/audits/localize/test_search.py::test_looking_ahead_is_the_slow_search_that_tries_unit_for_unit"
    ),
    "memaudit.audits.localize.ranking:FirstByTrial": (
        "tests/audits/localize/test_search.py::"
        "test_first_looks_are_those_of_the_slow_search_that_tries_and_weighs_what_it_tried"
    ),
    "memaudit.audits.localize.controls:Judge.reference_accuracy": (
        "tests/audits/localize/test_controls.py::test_a_sample_of_the_panel_comes_with_an_interval_that_holds_the_truth"
    ),
    "memaudit.audits.localize.together:together": (
        "tests/audits/localize/test_controls.py::test_side_by_side_each_measurement_finds_what_it_finds_alone"
    ),
    "memaudit.audits.localize.curtailed:undecided": (
        "tests/audits/localize/test_curtailed.py::test_the_chance_is_that_of_drawing_on_in_a_plain_simulation"
    ),
    "memaudit.audits.localize.cost:shared_rates": (
        "tests/audits/localize/test_cost.py::test_rates_are_those_of_a_plain_sum_over_the_model"
    ),
    "memaudit.audits.atypicality:atypicality": "tests/audits/test_atypicality.py::test_support_is_that_of_brute_force",
    "memaudit.audits.atypicality:observe_flagged": (
        "tests/audits/test_atypicality.py::test_flagged_examples_seen_part_by_part_are_those_seen_at_once"
    ),
    "memaudit.audits.discovery.copies:near_copies": (
        "tests/audits/test_discovery.py::test_copies_found_part_by_part_are_those_of_a_plain_comparison"
    ),
    "memaudit.audits.discovery.neighbours:Voters.asked": (
        "tests/audits/test_discovery.py::test_votes_are_those_of_a_plain_count"
    ),
    "memaudit.audits.memorization.relearned:relearned": (
        "tests/audits/test_memorization.py::test_relearning_is_a_plain_loop_and_leaves_the_network_as_it_was"
    ),
    "memaudit.audits.gradients:account": (
        "tests/audits/test_layerwise.py::test_gradient_figures_are_those_of_autograd_on_the_summed_loss"
    ),
    "memaudit.audits.rewind:rewind": (
        "tests/audits/test_layerwise.py::test_each_cell_is_that_of_a_plain_load_and_evaluation"
    ),
    "memaudit.data.ondemand:Store": (
        "tests/data/test_ondemand.py::test_a_set_of_any_size_is_read_and_is_the_one_in_memory"
    ),
    "memaudit.erase.curvature:spectra": "tests/erase/test_curvature.py::test_spectra_are_those_of_the_slow_factors",
    "memaudit.intervals.rates:bootstrap": (
        "tests/audits/localize/test_controls.py::test_a_bootstrap_of_many_draws_the_same_in_parts"
    ),
}
