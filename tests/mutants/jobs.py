"""Breaks of the jobs of a server before another Hub, of its own endpoints, and of its page."""

from __future__ import annotations

from . import Mutant

_JOBS = "jobs of a server before another Hub"
_CHANGE = "who wants to change what a server does"
_PAGE = "names and errors on the page of a server"

MUTANTS = (
    Mutant(
        "a-cancelled-job-goes-on",
        _JOBS,
        "server.filling:Fill.joined",
        "self.scope.cancel()",
        "pass",
        ("server/test_jobs.py::test_a_cancelled_job_stops_and_goes_on_from_where_it_was",),
    ),
    Mutant(
        "a-cancelled-job-takes-readers-along",
        _JOBS,
        "server.filling:Fill.joined",
        "self._jobs or self._asked_for or self._ended",
        "self._jobs or self._ended",
        ("server/test_jobs.py::test_what_a_client_reads_outlasts_the_job",),
    ),
    Mutant(
        "a-job-ends-with-its-server",
        _JOBS,
        "server.job_files:JobFiles.save",
        "rename(temporary, path)",
        "temporary.unlink()",
        ("server/test_jobs.py::test_jobs_outlast_a_killed_server",),
    ),
    Mutant(
        "a-job-fails-for-want-of-its-token",
        _JOBS,
        "server.jobs:Jobs._do",
        "JobState.NEEDS_TOKEN if lost else JobState.FAILED",
        "JobState.FAILED",
        ("server/test_jobs.py::test_a_job_waits_for_its_token_after_a_restart",),
    ),
    Mutant(
        "two-servers-go-on-with-one-job",
        _JOBS,
        "server.job_files:JobFiles.load",
        "if not self._claim():",
        "if self._claim() is None:",
        ("server/test_jobs.py::test_jobs_on_the_disk",),
    ),
    Mutant(
        "a-wrong-file-ends-the-job",
        _JOBS,
        "server.prefetch:Worker._fill",
        "if not isinstance(fill.error, ChecksumMismatchError | ChangedError):",
        "if fill.error is not None:",
        ("server/test_jobs.py::test_one_wrong_file_does_not_hold_up_the_others",),
    ),
    Mutant(
        "a-branch-is-unknown-after-a-prefetch",
        _JOBS,
        "server.prefetch:Worker._bring",
        'Resource("resolve", wanted.name, wanted.revision, path, wanted.kind)',
        'Resource("resolve", wanted.name, commit, path, wanted.kind)',
        ("server/test_jobs.py::test_what_was_prefetched_is_served_when_the_source_is_away",),
    ),
    Mutant(
        "pages-of-other-sites-may-change",
        _CHANGE,
        "server.control:Control._is_same_site",
        "return origin.lower() in ours",
        "return bool(ours)",
        ("server/test_jobs.py::test_who_may_change_something",),
    ),
    Mutant(
        "what-a-browser-says-of-its-site-is-ignored",
        _CHANGE,
        "server.control:Control._is_same_site",
        'request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none")',
        "request.method is None",
        ("server/test_jobs.py::test_who_may_change_something",),
    ),
    Mutant(
        "strangers-may-change",
        _CHANGE,
        "server.control:Control._refusal",
        "if not self.may_change(request):",
        "if request.method is None:",
        ("server/test_jobs.py::test_who_may_change_something",),
    ),
    Mutant(
        "a-form-may-change",
        _CHANGE,
        "server.control:_body_of",
        '!= "application/json"',
        '== "nothing"',
        ("server/test_jobs.py::test_who_may_change_something",),
    ),
    Mutant(
        "private-names-for-everybody",
        _CHANGE,
        "server.state:State.sees",
        "full or self._parts.upstream.is_open(repository)",
        "bool(repository)",
        ("server/test_jobs.py::test_names_are_told_to_who_may_see_them",),
    ),
    Mutant(
        "a-glob-is-html",
        _PAGE,
        "server.service_page:_job",
        "escape(glob)",
        "glob",
        ("server/test_service_page.py::test_names_are_text_wherever_they_stand",),
    ),
    Mutant(
        "an-error-is-html",
        _PAGE,
        "server.service_page:_said",
        "escape(re.sub(",
        "str(re.sub(",
        ("server/test_service_page.py::test_names_are_text_wherever_they_stand",),
    ),
    Mutant(
        "a-viewer-is-sent-what-is-over",
        _PAGE,
        "server.live:Live._frame",
        "time.monotonic() - before.at < TICK / 2",
        "before.number",
        ("server/test_service_page.py::test_who_reads_slowly_gets_the_latest",),
    ),
    Mutant(
        "who-watches-is-cut-off",
        _PAGE,
        "server.pull_through:PullThrough.leave",
        "self.live.end()",
        "pass",
        ("server/test_service_page.py::test_who_watches_is_let_go_when_the_server_ends",),
    ),
)
