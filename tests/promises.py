"""What the library promises, and the tests that guard it.

`python -m tests.promises` prints the table that stands in CONTRIBUTING.md.
"""

PROMISES: dict[str, tuple[str, ...]] = {
    "The same pictures as the reference implementation": (
        "tests/test_golden_sequential.py",
        "tests/test_goldens.py::test_local_executor",
        "tests/test_goldens.py::test_distributed_executor",
    ),
    "`warmup` ≥ steps is the plain pipeline, bit for bit": (
        "tests/pipelines/test_pipelines.py::test_one_process",
        "tests/pipelines/test_sampling.py::test_schedulers",
        "tests/runtime/test_methods.py::test_warm_up_throughout_is_the_ordinary_pipeline",
    ),
    "Several processes give what one process gives": (
        "tests/pipelines/test_pipelines.py::test_two_processes",
        "tests/pipelines/test_pipelines.py::test_three_processes",
        "tests/pipelines/test_pipelines.py::test_four_processes",
        "tests/pipelines/test_sampling.py::test_mishaps_on_all_ranks",
        "tests/runtime/test_methods.py::test_processes_give_what_one_process_gives",
        "tests/plan/test_storage.py",
    ),
    "Divided tokens: steps in full are the plain pipeline's, rounds use the keys of the steps before": (
        "tests/runtime/test_tokens.py",
        "tests/runtime/test_fresh_tokens.py",
        "tests/runtime/test_tokens_and_components.py",
        "tests/plan/test_tokens.py",
        "tests/denoiser/test_attention.py",
    ),
    "Where nothing is said, tokens are divided if that is exact and fast, and components else": (
        "tests/runtime/test_axis.py",
    ),
    "Divided weights give the same picture": (
        "tests/runtime/test_chain.py",
        "tests/weights/test_parts.py",
        "tests/weights/test_quantized.py",
        "tests/weights/test_variants.py",
        "tests/denoiser/test_rehearsal.py",
    ),
    "The live edges are all that is needed, and each is needed": (
        "tests/zoo/test_zoo.py::test_quick_part",
        "tests/zoo/test_zoo.py::test_a_missing_live_edge_would_show",
        "tests/zoo/test_zoo.py::test_a_live_edge_too_many_would_show",
        "tests/plan/test_partition.py",
    ),
    "Rounds are the paper's recurrence": (
        "tests/plan/test_schedule.py",
        "tests/pipelines/test_sampling.py::test_schedulers",
        "tests/pipelines/test_sampling.py::test_rounds_that_are_not_full",
        "tests/runtime/test_methods.py::test_recurrence_of_a_residual_stack",
        "tests/zoo/test_zoo.py::test_quick_part",
    ),
    "`disable()` leaves nothing behind": (
        "tests/runtime/test_lifecycle.py::test_disable_leaves_nothing_behind",
        "tests/pipelines/test_choice.py::test_disabling_leaves_the_pipeline_as_it_was",
        "tests/pipelines/test_execution.py::test_offloading",
    ),
    "Every call is as if it were the first": (
        "tests/runtime/test_lifecycle.py::test_every_call_is_as_if_it_were_the_first",
        "tests/runtime/test_lifecycle.py::test_so_on_several_ranks",
        "tests/pipelines/test_sampling.py::test_an_interrupted_call_and_the_next",
    ),
    "What the ranks start does not hang on NCCL": (
        "tests/exchange/test_order.py",
        "tests/exchange/test_rules.py",
    ),
    "Rounds start hardly more operators than their part of a call": ("tests/benchmarks/test_overhead.py",),
    "A rank that stops ends the run also where waits do not hold the host": (
        "tests/exchange/test_line.py::test_a_stuck_rank_where_waits_do_not_hold_the_host",
        "tests/exchange/test_line.py::test_a_stuck_rank_where_the_host_is_held_by_its_device",
        "tests/exchange/test_line.py::test_what_is_outstanding_after_a_failure_is_aborted",
    ),
    "A call that is part of no generation is the ordinary one": (
        "tests/runtime/test_generation.py::test_calls_between_generations_are_the_plain_ones",
        "tests/runtime/test_generation.py::test_gradients_are_those_of_the_plain_denoiser",
        "tests/runtime/test_generation.py::test_timesteps_in_any_order_are_no_generation",
    ),
    "Every generation is recognised, whichever pipeline, scheduler or thread drives it": (
        "tests/runtime/test_generation.py::test_a_second_pipeline_on_the_same_denoiser",
        "tests/runtime/test_generation.py::test_two_threads_two_pipelines_one_denoiser",
        "tests/runtime/test_generation.py::test_a_loop_by_hand_is_a_generation",
        "tests/runtime/test_generators.py",
    ),
    "What a generation held is freed at its end": (
        "tests/runtime/test_generation.py::test_a_generation_leaves_nothing_in_memory",
        "tests/runtime/test_generation.py::test_memory_is_free_while_the_picture_is_decoded",
    ),
    "The ranks' pace does not matter": ("tests/exchange/test_line.py::test_ranks_at_an_uneven_pace",),
    "Ranks that disagree, die or hang end in an error in bounded time": (
        "tests/faults/test_faults.py",
        "tests/runtime/test_ranks.py",
        "tests/exchange/test_agreement.py",
        "tests/runtime/test_statements.py",
        "tests/denoiser/test_look.py",
        "tests/test_errors.py::test_ranks_with_different_inputs",
        "tests/test_errors.py::test_a_rank_that_dies",
        "tests/test_errors.py::test_a_rank_that_never_joins",
        "tests/test_errors.py::test_a_rank_that_hangs",
        "tests/pipelines/test_choice.py::test_ranks_that_would_choose_differently",
    ),
    "Several pipelines may be attached side by side, and leave in any order": ("tests/exchange/test_membership.py",),
    "`timeout` limits joining and our own waits, and nobody else's": (
        "tests/test_errors.py::test_a_rank_that_never_joins",
        "tests/exchange/test_meeting.py",
        "tests/exchange/test_membership.py::test_our_limit_is_not_that_of_the_users_waits",
    ),
    "Some of the processes can make a picture of their own": ("tests/exchange/test_process_group.py",),
    "Guidance groups are exact": (
        "tests/runtime/test_guidance.py",
        "tests/runtime/test_batch.py",
        "tests/runtime/test_deferred.py",
        "tests/pipelines/test_choice.py::test_every_generation_has_its_own_choice",
    ),
    "Decoding that is shared out gives what one device makes, bit for bit": (
        "tests/runtime/test_decoding.py",
        "tests/runtime/test_promise.py",
    ),
    "Forecasts are exact on linear series": (
        "tests/plan/test_forecast.py::test_the_line_is_exact_however_uneven_the_gaps_are",
        "tests/plan/test_forecast.py::test_exact_on_a_linear_series_with_uneven_gaps",
    ),
    "The guard does the same on all ranks": (
        "tests/runtime/test_guard.py::test_all_ranks_insert_the_same_steps",
        "tests/runtime/test_guard.py::test_bounds",
    ),
    "LoRA, ControlNet and other adapters may be put on and off between calls": (
        "tests/pipelines/test_adapters.py::test_a_change_between_two_calls",
        "tests/pipelines/test_adapters.py::test_changes_between_two_processes",
    ),
    "Compiled, offloaded, quantized and copied modules run in rounds, or are clearly refused": (
        "tests/pipelines/test_execution.py",
        "tests/pipelines/test_wrappers.py",
        "tests/runtime/test_single.py",
    ),
    "Another rule that decides which blocks run is refused, or named at the first call that shows it": (
        "tests/pipelines/test_other_rules.py",
        "tests/runtime/test_units.py",
    ),
    "Other schedulers, sizes, batches and precisions": (
        "tests/pipelines/test_sampling.py",
        "tests/runtime/test_labels.py",
    ),
    "Bad input ends in a sentence that says what would be right, before anything is changed, loaded or written": (
        "tests/test_bad_input.py",
        "tests/commands/test_bad_input.py",
    ),
    "Weights are read from safetensors, unless pickles are allowed": ("tests/test_loading.py",),
    "Nothing that comes from another rank is unpickled": ("tests/test_no_pickles.py", "tests/test_plain.py"),
    "The command line's exit codes": (
        "tests/commands/test_cli.py",
        "tests/commands/test_bad_input.py",
        "tests/evaluation/test_evaluate.py::test_a_setting_that_fails_leaves_the_others",
        "tests/evaluation/test_evaluate.py::test_an_interrupt_ends_with_130_and_no_report",
    ),
    "The docs' code and commands run as they stand": ("tests/docs",),
    "A plan needs no weights, and goes by what the executors go by": (
        "tests/planning",
        "tests/plan/test_timeline.py",
        "tests/plan/test_token_counting.py",
        "tests/commands/test_plan.py",
    ),
    "A setting's text stands in one place": ("tests/test_settings.py",),
    "What is asked of a pipeline in words is what its own arguments make, and a file holds what was made": (
        "tests/request",
        "tests/made",
        "tests/commands/test_requests.py",
        "tests/test_lora.py",
    ),
    "The service makes videos as jobs, and takes pictures within limits; a command that asks it sends what was typed": (
        "tests/serving/test_videos.py",
        "tests/serving/test_wire.py",
        "tests/serving/test_client.py",
    ),
    "Workers give the picture of one process, outlive Ctrl-C and errors, and end with their block": (
        "tests/workers/test_workers.py",
        "tests/workers/test_parcel.py",
        "tests/workers/test_opening.py",
    ),
    "A request to the service is within its limits, or refused by a sentence; nothing of it is run or opened": (
        "tests/serving/test_wire.py",
        "tests/serving/test_app.py::test_no_path_reaches_the_file_system",
        "tests/serving/test_app.py::test_bodies_that_are_too_long_or_of_another_kind",
        "tests/serving/test_app.py::test_pictures_at_an_address_that_cannot_be_guessed_and_nothing_on_the_disk",
    ),
    "No more requests wait than may; who goes away frees the place": (
        "tests/serving/test_front.py::test_first_come_first_drawn_and_no_more_wait_than_may",
        "tests/serving/test_front.py::test_who_goes_away_frees_the_place_and_ends_the_generation",
        "tests/serving/test_service.py::test_who_goes_away_frees_the_place",
    ),
    "Every request to the service is answered once, rightly or with an error, whatever dies": (
        "tests/serving/test_front.py",
        "tests/serving/test_app.py::test_what_fails_fails_alone",
        "tests/serving/test_app.py::test_a_lost_replica_is_an_answer_all_the_same",
    ),
    "The service draws the picture of one process, for OpenAI's client, and ends with all of its processes": (
        "tests/serving/test_service.py",
    ),
    "Who has no key is not answered, and without keys a service is for its own machine": (
        "tests/serving/test_app.py::test_keys",
        "tests/serving/test_service.py::test_it_listens_on_the_loopback_alone",
        "tests/commands/test_bad_input.py::test_commands",
    ),
    "ComfyUI's nodes give the service's picture, and cancelling there ends it here": (
        "tests/integrations/test_comfyui_asking.py::test_a_picture",
        "tests/integrations/test_comfyui_asking.py::test_cancel_ends_the_drawing",
        "tests/integrations/test_comfyui_asking.py::test_cancel_frees_the_place_in_the_line",
    ),
    "A workflow of somebody else sends no key to an address that it is not for": (
        "tests/integrations/test_comfyui_asking.py::test_no_key_goes_to_an_address_of_somebody_else",
        "tests/integrations/test_comfyui_nodes.py::test_a_key_belongs_to_an_address",
    ),
    "The service's page shows what was drawn, by step and by rank, and lets nothing of others in": (
        "tests/serving/test_page.py",
        "tests/serving/test_ways.py",
        "tests/test_timeline.py",
        "tests/workers/test_kinds.py",
    ),
    "Imports run one way": ("tests/test_imports.py",),
}


def as_table() -> str:
    """The promises as a Markdown table."""
    lines = ["| promise | tests |", "| --- | --- |"]
    for promise, tests in PROMISES.items():
        shown = ", ".join(f"`{test}`" for test in tests)
        lines.append(f"| {promise} | {shown} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(as_table())
