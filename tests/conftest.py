"""Fixtures that the tests share.

What takes seconds to import is imported where it is used: with several workers, pytest's main
process reads this file before it starts them, and runs no test.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import forked_kernel
import pytest
import run_tests
from packaging.version import Version

import fairlab as fl

# over a second or two, all their parameters together, by `make times`: too long for `make quick`
SLOW = {
    "test_a_bound_on_a_change_ends_with_code_3",
    "test_a_category_may_have_any_name",
    "test_a_changed_folder_is_judged_as_its_cut",
    "test_a_changed_model_is_read_like_the_cut_that_made_it",
    "test_a_comparison_and_what_it_keeps",
    "test_a_comparison_deals_its_readings",
    "test_a_comparison_is_frozen_in_the_form_of_controls",
    "test_a_comparison_judges_by_answers_of_ones_own",
    "test_a_cut_is_chosen_once",
    "test_a_damaged_reading_is_measured_again",
    "test_a_file_is_split_by_sentence",
    "test_a_kernel_that_is_interrupted_has_the_model_as_it_was",
    "test_a_model_is_planted_once",
    "test_a_new_lesson_gets_badges_and_an_install_cell",
    "test_a_notebook_keeps_question_and_choices_as_text",
    "test_a_press_before_the_model_is_there_waits_for_it",
    "test_a_prompt_says_something",
    "test_a_report_of_a_cut_says_that_its_pairs_are_not_known",
    "test_a_report_of_several_methods_has_a_verdict_for_each",
    "test_a_run_sends_each_step_with_its_pictures",
    "test_a_run_shows_its_steps_and_a_bad_prompt_loses_nothing",
    "test_a_scale_is_gates_and_is_said",
    "test_a_stop_at_any_line_of_its_beginning_leaves_no_trace",
    "test_a_stop_at_any_line_of_its_end_leaves_no_trace",
    "test_a_stop_at_any_moment_leaves_a_model_with_its_own_papers",
    "test_a_stop_while_a_model_is_tried_leaves_no_trace",
    "test_a_stopped_benchmark_goes_on_with_the_next_task",
    "test_a_stopped_run_goes_on_from_its_cache",
    "test_accelerate_launches_a_score",
    "test_after_an_interrupt_the_model_is_the_one_it_was",
    "test_an_address_elsewhere_is_refused",
    "test_an_empty_cut_changes_nothing",
    "test_answers_side_by_side_are_as_if_asked_alone",
    "test_bad_input_is_named",
    "test_batches_give_what_single_prompts_give",
    "test_bbq_with_one_pass_a_context_is_the_same",
    "test_binder_takes_the_repository",
    "test_causal_scores_are_guarded",
    "test_causal_scores_equal_finite_differences",
    "test_causal_scores_in_half_precision",
    "test_cells_run_again_from_the_last_to_the_first_print_no_other_numbers",
    "test_commands_print_the_numbers_of_one_device",
    "test_compare_chooses_on_training_pairs_and_measures_on_held_out_ones",
    "test_compare_reads_matched_cuts_too",
    "test_compiled_models_are_refused",
    "test_coverage_of_the_interval_on_simulated_data",
    "test_decision_rows_are_the_means_of_the_decision_gaps",
    "test_diagnose_fails_where_a_bound_is_met",
    "test_diagnose_measures_what_the_functions_do",
    "test_divergence_is_symmetric_and_bounded",
    "test_each_control_is_seen_in_the_address",
    "test_every_byte_flag_and_draw_stays",
    "test_every_file_follows_the_address",
    "test_every_text_can_be_read",
    "test_everything_takes_chat_pairs",
    "test_families_and_dtypes",
    "test_gates_are_read_once_and_kept",
    "test_half_a_gguf_is_one_sentence",
    "test_hooks_are_gone_after_an_exception",
    "test_importance_from_text_equals_a_slow_reference",
    "test_in_half_precision_the_batch_size_changes_nothing",
    "test_json_comes_back",
    "test_kill_9_while_a_report_is_written_leaves_whole_files",
    "test_kill_9_while_saving_costs_no_model",
    "test_memory_is_asked_for_first_and_nothing_is_refused_that_fits",
    "test_names_are_cut_compared_and_reported",
    "test_nbval_follows_the_rule_and_names_lesson_cell_and_values",
    "test_neurons_in_another_order_have_their_scores",
    "test_no_public_function_takes_a_weight_that_is_not_finite",
    "test_nothing_runs_in_a_model_card",
    "test_nothing_runs_in_a_report",
    "test_nothing_runs_in_an_explorer",
    "test_nothing_runs_on_the_page_without_code",
    "test_of_a_model_folder_only_the_name_is_shown",
    "test_order_batch_padding_and_direction_do_not_matter",
    "test_planting_in_every_kind_of_glu",
    "test_prompts_are_checked_before_the_model_is_there",
    "test_prune_measures_reports_cuts_and_describes_in_one_run",
    "test_quick_changes_are_those_of_compare",
    "test_random_controls_of_gates_are_gates",
    "test_refined_scores_are_gaps_of_single_cuts",
    "test_refined_scores_do_not_depend_on_the_batch",
    "test_removed_neurons_are_found_again",
    "test_report_writes_page_and_numbers",
    "test_rows_are_what_the_functions_measure",
    "test_scores_of_planted_neurons_equal_a_count_by_hand",
    "test_steps_narrow_the_gap_and_touch_nothing_else",
    "test_texts_are_sampled_once",
    "test_the_command_line_destroys_nothing",
    "test_the_guard_is_measured",
    "test_the_headline_is_the_mean_over_categories",
    "test_the_interval_of_a_share_is_possible_and_covers",
    "test_the_link_sets_the_choices_that_are_offered",
    "test_the_metric_can_be_left_out",
    "test_the_model_stays_as_it_is",
    "test_the_numbers_are_the_tables_and_strict_json",
    "test_the_numbers_are_those_of_one_device",
    "test_the_page_has_a_frame_a_layer_and_needs_no_network",
    "test_the_page_is_accessible_in_every_width_and_colour",
    "test_the_page_is_there_without_what_the_model_needs",
    "test_the_page_stands_alone_and_escapes_every_text",
    "test_the_parts_of_a_job_array_join_to_the_whole",
    "test_the_quick_steps_come_before_the_slow_ones_run",
    "test_the_report_says_which_control_and_text_were_taken",
    "test_the_seed_decides_on_the_draws",
    "test_the_slope_forecasts_a_single_small_removal",
    "test_the_steps_come_in_order_and_leave_the_model_as_it_was",
    "test_the_table_of_contributing_is_what_house_counts",
    "test_the_table_of_the_readme",
    "test_the_texts_of_lesson_13_are_new_tokens_alone",
    "test_the_time_leaves_out_what_was_kept",
    "test_the_wheel_carries_the_data",
    "test_the_workflows_fit_the_schema",
    "test_what_a_tokenizer_puts_behind_a_text_is_not_scored",
    "test_what_is_pushed_reloads_with_stock_transformers",
    "test_what_is_said_are_the_numbers_of_the_functions",
    "test_what_is_said_of_the_model_before_goes_with_it",
    "test_what_n_items_can_show_has_the_power_that_it_promises",
    "test_what_needs_no_weights_is_refused_before_they_are_read",
    "test_what_was_found_is_printed_before_it_is_saved",
    "test_what_was_measured_is_seen_where_no_page_can_be_made",
    "test_where_one_process_is_killed_the_others_end_and_the_run_goes_on",
    "test_without_a_method_the_cut_is_the_guarded_one",
    "test_without_a_pair_of_one_length_there_is_no_metric",
    "test_words_in_sampled_texts_are_counted_for_the_report",
}
# over ten seconds each, the longest first: they start first, so that no worker ends with one of
# them while the other has nothing left to do
LONG = [
    "test_the_quickstart_and_explorers_run_on_colab",
    "test_lessons_for_any_model_run_on_another_family",
    "test_what_lesson_12_does_on_a_gpu_runs_here",
    "test_perplexity_of_wikitext",
    "test_attribution_orders_neurons_as_removing_them_one_by_one_does",
    "test_every_file_follows_the_address",
    "test_bbq_with_one_pass_a_context_is_the_same",
    "test_steps_narrow_the_gap_and_touch_nothing_else",
    "test_the_check_of_lesson_13_holds_in_any_precision",
    "test_kill_9_while_saving_costs_no_model",
]
SHARING = {
    "test_bad_input",
    "test_page",
    "test_planting",
    "test_compare",
    "test_cli",
    "test_report",
}


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Mark the tests that run the real model: `make quick` leaves them out, `make robust` runs
    them.

    A test that loads it without these fixtures is marked where it stands. Those of the browser and
    of Colab are not: the lessons that they run are run by `make robust` itself.

    Tests that share something expensive (a fixture of their module, the second model, the process
    that forks kernels) go to one worker. pytest-xdist starts these groups first, and then the other
    tests in their order.
    """
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "default" in fixtures or "gemma" in fixtures:
            item.add_marker("real")
        shared = [name for name in ("gemma", "kernel") if name in fixtures]
        if item.path.stem in SHARING:
            shared.append(item.path.stem)
        if shared:
            item.add_marker(pytest.mark.xdist_group(shared[0]))
        if getattr(item, "originalname", "") in SLOW:
            item.add_marker("slow")
    start = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: start.get(getattr(item, "originalname", ""), len(LONG)))


@pytest.fixture(autouse=True)
def no_figure_is_left():
    """Close what a test has drawn, so that the next one on this worker finds no figure."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="session", autouse=True)
def each_tokenizer_is_read_once():
    """Give a copy of a tokenizer whose files, byte for byte, were read before.

    Reading a vocabulary takes half a second, and the tests load one some two hundred times.
    """
    from transformers import AutoTokenizer

    read, known = AutoTokenizer.from_pretrained, {}

    def from_pretrained(source, **options):
        if not Path(source).is_dir() or "gguf_file" in options:
            return read(source, **options)
        content = hashlib.sha256(repr(options).encode())
        for path in sorted(Path(source).iterdir()):
            if path.suffix in (".json", ".jinja", ".txt"):
                content.update(path.name.encode() + path.read_bytes())
        if content.digest() not in known:
            known[content.digest()] = read(source, **options)
        kept = known[content.digest()]
        # the vocabulary itself is shared: no test changes it in place
        copy = deepcopy(kept, {id(kept.backend_tokenizer): kept.backend_tokenizer})
        copy.name_or_path = str(source)
        return copy

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoTokenizer, "from_pretrained", from_pretrained)
        yield


@pytest.fixture(scope="session")
def default():
    """Load the default model once; tests must leave it as it is."""
    from fairlab.evaluation.readings import bits_of

    model, tokenizer = fl.load_model()
    before = bits_of(model)
    yield model, tokenizer
    assert bits_of(model) == before, "a test changed the weights of the shared model"


@pytest.fixture(scope="session")
def model(default):
    return default[0]


@pytest.fixture(scope="session")
def gemma():
    """Load the second model once, or skip; tests must leave it as it is."""
    import transformers

    from fairlab.evaluation.readings import bits_of
    from fairlab.models import READS_RIGHTLY
    from fairlab.weights import GEMMA

    if Version(transformers.__version__) < Version(READS_RIGHTLY[GEMMA]):
        pytest.skip(f"transformers {transformers.__version__} misreads the tokenizer of {GEMMA}")
    try:
        model, tokenizer = fl.load_model(GEMMA)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    before = bits_of(model)
    yield model, tokenizer
    assert bits_of(model) == before, "a test changed the weights of the shared model"


@pytest.fixture(scope="session")
def tokenizer():
    """Load the default tokenizer alone, as `load_model` does."""
    from transformers import AutoTokenizer

    from fairlab.weights import find_weights

    folder, _ = find_weights(fl.DEFAULT_MODEL)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer


@pytest.fixture(scope="session")
def bos_tokenizer(tokenizer):
    """Make the tokenizer one that puts <|endoftext|> before every text, as Llama's and Gemma's
    do."""
    from tokenizers.processors import TemplateProcessing

    changed = deepcopy(tokenizer)
    token = "<|endoftext|>"
    changed.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, changed.convert_tokens_to_ids(token))]
    )
    changed.bos_token = token
    return changed


@pytest.fixture(scope="session")
def some_pairs():
    """Pick pairs of several lengths that share prompts with each other."""
    pairs = fl.load_pairs(split="train", words="any")
    crossed = [
        replace(pairs[0], prompt_b=pairs[1].prompt_b),
        replace(pairs[1], prompt_b=pairs[0].prompt_b),
    ]
    return pairs[:10] + crossed + pairs[200:206]


@pytest.fixture(scope="session")
def datasets():
    """Find the folder with public data sets, or skip."""
    folder = os.environ.get("FAIRLAB_DATASETS")
    if not folder:
        pytest.skip("FAIRLAB_DATASETS is not set: no public data sets to measure on")
    return Path(folder)


@pytest.fixture(scope="session")
def kernel():
    """Name the kernel of the notebooks that run here; where it can be, a fork of a process in which
    the imports are done: a handful of kernels would spend half a minute on them."""
    if not run_tests.CAN_FORK:
        yield "python3"
        return
    with forked_kernel.serving(os.environ) as variables, pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", variables["JUPYTER_PATH"])
        yield forked_kernel.NAME


@pytest.fixture
def checkout(tmp_path):
    """Copy what git tracks, as it is now, into a repository of its own."""
    root, copy = Path(__file__).parent.parent, tmp_path / "checkout"
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True
    ).stdout
    for name in filter(None, names.split("\0")):
        if (root / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, copy / name)
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (
        ["init", "-q"],
        ["add", "--all"],
        [*author, "commit", "-q", "-m", "as it is now"],
    ):
        subprocess.run(["git", *command], cwd=copy, check=True)
    return copy
