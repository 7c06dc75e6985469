"""Breaks of what people see: progress, the log, the doctor."""

from __future__ import annotations

from . import Mutant

_WATCHED = "who watches a load"
_DOCTOR = "an environment in which nothing can work"
_SHOWING = "api/test_showing.py::"
_INSPECTED = "what a checkpoint is said to need"
_TRACED = "a program that uses OpenTelemetry"
_SPANS = "api/test_telemetry.py::"
_BROKEN = "cli/test_doctor.py::"

MUTANTS = (
    Mutant(
        "two-tables-on-a-terminal",
        _WATCHED,
        "progress.shown:shown",
        "_terminal.acquire(blocking=False)",
        "True",
        (f"{_SHOWING}test_a_terminal_gets_one_table",),
    ),
    Mutant(
        "a-setting-beside-a-reporter",
        _WATCHED,
        "api.showing:_is_shown",
        'wanted.get("report") is None',
        "True",
        (f"{_SHOWING}test_lines_where_there_is_no_terminal",),
    ),
    Mutant(
        "each-wait-in-the-log",
        _WATCHED,
        "progress.log:LoadLog._level",
        "self._told[event.reason] = now",
        "pass",
        (f"{_SHOWING}test_a_thousand_files_that_wait_are_one_line",),
    ),
    Mutant(
        "each-request-in-the-log",
        _WATCHED,
        "network.wall:_Redact.filter",
        "return False",
        "pass",
        (f"{_SHOWING}test_a_line_for_each_request_is_a_detail",),
    ),
    Mutant(
        "failures-left-out-of-the-log",
        _WATCHED,
        "api.showing:watching",
        "log.failed(error)",
        "pass",
        (f"{_SHOWING}test_the_log_of_a_load",),
    ),
    Mutant(
        "names-as-html",
        _WATCHED,
        "progress.notebook:_line",
        'shown = f"<b>{escape(name)}</b>" if strong else escape(name)',
        "shown = name",
        ("api/test_notebook.py::test_a_picture_is_bounded_and_harmless",),
    ),
    Mutant(
        "shards-cut-with-other-files",
        _WATCHED,
        "progress.text:fit_names",
        "len(set(cut.values())) < len(long)",
        "False",
        ("progress/test_text.py::test_shards_stay_distinct_beside_other_files",),
    ),
    Mutant(
        "a-thousand-warnings",
        _WATCHED,
        "progress.lines:Repeats.__call__",
        "len(alike) > 1",
        "False",
        ("progress/test_lines.py::test_equal_warnings_are_one",),
    ),
    Mutant(
        "scales-are-parameters",
        _INSPECTED,
        "api.inspecting:_parameters",
        "if name not in scales",
        "if name",
        ("api/test_inspecting.py::test_quantised_weights",),
    ),
    Mutant(
        "packed-numbers-are-bytes",
        _INSPECTED,
        "api.inspecting:_dequantized_needs",
        "math.prod(found.result)",
        "stored[found.weight].nbytes",
        ("api/test_inspecting.py::test_quantised_weights",),
    ),
    Mutant(
        "a-cast-takes-what-is-stored",
        _INSPECTED,
        "api.inspecting:_cast_size",
        "np.dtype(target).itemsize",
        "there.itemsize",
        ("api/test_inspecting.py::test_what_a_load_takes_is_what_was_told",),
    ),
    Mutant(
        "memory-for-what-cannot-be-read",
        _INSPECTED,
        "api.inspecting:_needs",
        "not any(True for _ in foreign_weights(stored, scaled))",
        "True",
        ("api/test_inspecting.py::test_what_nobody_else_can_read",),
    ),
    Mutant(
        "a-picture-that-cannot-be-is-found-out-late",
        _INSPECTED,
        "cli.plotting:check_plot",
        "check_output(path)",
        "pass",
        ("cli/test_cli.py::test_a_picture_of_where_the_bytes_are",),
    ),
    Mutant(
        "telemetry-for-who-wants-none",
        _TRACED,
        "progress.telemetry:is_used",
        'return "opentelemetry.trace" in sys.modules',
        "return True",
        (f"{_SPANS}test_a_program_without_it_does_not_import_it",),
    ),
    Mutant(
        "an-open-checkpoint-is-an-open-span",
        _TRACED,
        "progress.telemetry:Telemetry._resolved",
        'if self._operation == "open":',
        "if False:",
        (f"{_SPANS}test_each_call_is_a_span",),
    ),
    Mutant(
        "bytes-are-counted-again",
        _TRACED,
        "progress.telemetry:Telemetry._count",
        "self._counted = self._state.transferred",
        "pass",
        (f"{_SPANS}test_each_call_is_a_span",),
    ),
    Mutant(
        "a-failed-call-looks-well",
        _TRACED,
        "api.showing:watching",
        "telemetry.end(error)",
        "telemetry.end()",
        (f"{_SPANS}test_what_goes_wrong_is_told_without_secrets",),
    ),
    Mutant(
        "token-for-whoever-answers",
        _DOCTOR,
        "cli.doctor:_network",
        'if token is None and reached[0].state != "wrong":',
        "if token is None:",
        (f"{_BROKEN}test_a_hub_that_is_none",),
    ),
    Mutant(
        "token-in-the-open",
        _DOCTOR,
        "cli.doctor:_unused_token",
        'if not settings.endpoint.startswith("https:") and not _is_here(settings.endpoint):',
        "if False:",
        (f"{_BROKEN}test_a_token_in_the_open",),
    ),
    Mutant(
        "any-answer-is-a-hub",
        _DOCTOR,
        "cli.doctor:_is_hub",
        "return False",
        "return True",
        (f"{_BROKEN}test_a_hub_that_is_none",),
    ),
    Mutant(
        "doctor-leaves-its-probe",
        _DOCTOR,
        "cli.doctor:_cache",
        "shutil.rmtree(probe, ignore_errors=True)",
        "pass",
        (f"{_BROKEN}test_all_is_well",),
    ),
)
