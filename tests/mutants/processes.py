"""Breaks of what several tasks, threads and processes may count on."""

from __future__ import annotations

from . import Mutant

_TWO = "two loads of one model"
_HOLDER = "a holder of a lock that stands still"
_CANCEL = "cancelled at any moment"
_UNDER = "a block that ends while another task reads in it"
_SOCKETS = "sockets, descriptors and locks after failure and cancellation"
_SIBLINGS = "one of several fails"
_MEMORY = "memory and connections are bounded"
_REPORT = "a progress callback that raises"
_INTERRUPT = "Ctrl-C, and event loops that run already"
_LEAVING = "leaving while a name is looked up"

MUTANTS = (
    Mutant(
        "each-load-downloads",
        _TWO,
        "engine.receiving:begin",
        "if await _already_there(job, file):",
        "if await _already_there(job, file) and not lock:",
        ("engine/test_transfer.py::test_two_loads_at_once",),
    ),
    Mutant(
        "no-lock",
        _TWO,
        "engine.receiving:begin",
        "lock = await lock_blob(cache, file.key, job.policy.lock_patience, lambda: job.notify(waiting))",
        "lock = None",
        ("engine/test_transfer.py::test_two_loads_at_once",),
    ),
    Mutant(
        "waits-for-a-lock-without-end",
        _HOLDER,
        "storage.locks:lock_blob",
        "elif time.monotonic() - since > patience:",
        "elif patience < 0:",
        ("engine/test_transfer.py::test_a_lock_that_another_holds",),
    ),
    Mutant(
        "busy-holder-not-waited-for",
        _HOLDER,
        "storage.locks:lock_blob",
        "seen, since = now, time.monotonic()",
        "seen = now",
        ("engine/test_transfer.py::test_a_lock_that_another_holds",),
    ),
    Mutant(
        "looks-names-up-in-threads-of-the-loop",
        _LEAVING,
        "network.sockets:_connect",
        "interleave(await addresses_of(host, port))",
        "interleave(await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM))",
        (
            "network/test_names.py::test_an_interrupt_of_blocking_code",
            "network/test_names.py::test_cancellation_on_each_loop",
        ),
    ),
    Mutant(
        "end-waits-for-threads-of-libraries",
        _LEAVING,
        "api.blocking:_run_loop.main",
        "_LooseExecutor()",
        "ThreadPoolExecutor()",
        ("network/test_names.py::test_ctrl_c_of_the_command_line",),
    ),
    Mutant(
        "look-ups-without-a-bound",
        _LEAVING,
        "network.names:_LookUps.of",
        "if len(self._running) >= _MOST:",
        "if False:",
        ("network/test_names.py::test_who_leaves_leaves_nothing",),
    ),
    Mutant(
        "each-connection-looks-the-name-up",
        _LEAVING,
        "network.names:_LookUps.of",
        "if name in self._running:",
        "if False:",
        ("network/test_names.py::test_who_asks_for_the_same_shares",),
    ),
    Mutant(
        "hashing-takes-all-threads",
        _CANCEL,
        "tasks:off_loop",
        "_slow_threads if slow else _threads",
        "_threads",
        ("api/test_busy_threads.py::test_what_is_slow_holds_up_nothing_short",),
    ),
    Mutant(
        "imports-in-threads-of-the-application",
        _CANCEL,
        "api.public:imported",
        'return await off_loop(lambda: _import_quietly(f"asyncfetch.{module}"), slow=True)',
        'return await anyio.to_thread.run_sync(lambda: _import_quietly(f"asyncfetch.{module}"))',
        ("api/test_busy_threads.py::test_calls_need_no_thread_of_the_application",),
    ),
    Mutant(
        "waits-for-threads-of-the-application",
        _CANCEL,
        "tasks:off_loop",
        "limiter=limiter, ",
        "",
        ("engine/test_receiving.py::test_an_application_that_takes_all_threads_holds_up_no_teardown",),
    ),
    Mutant(
        "cancellation-leaves-no-journal",
        _CANCEL,
        "engine.transfer:Transfer._suspend",
        "anyio.CancelScope(shield=True)",
        "anyio.CancelScope(shield=False)",
        ("engine/test_transfer.py::test_cancelled_at_any_burst",),
    ),
    Mutant(
        "nothing-suspended",
        _CANCEL,
        "engine.transfer:Transfer.run",
        "await self._suspend()",
        "self._open.clear()",
        ("engine/test_transfer.py::test_cancelled_at_any_burst",),
    ),
    Mutant(
        "cancellation-retried",
        _CANCEL,
        "network.retry:is_transient",
        "return isinstance(error, NetworkError | RateLimitedError) and error.transient",
        "return True",
        ("network/test_retry.py::test_a_task_that_is_cancelled_once_ends",),
    ),
    Mutant(
        "cancelled-wait-loses-a-tensor",
        _CANCEL,
        "tensors.feed:Feed.next",
        (
            "entry = self._ready[0]\n"
            "array = await run_as_task(lambda: off_loop(entry.make)) if entry.heavy else entry.make()"
        ),
        (
            "entry = self._ready.popleft()\n"
            "array = await run_as_task(lambda: off_loop(entry.make)) if entry.heavy else entry.make()\n"
            "self._ready.appendleft(entry)"
        ),
        ("api/test_streaming.py::test_a_wait_cancelled_while_a_thread_works",),
    ),
    Mutant(
        "cancelled-wait-loses-a-shard",
        _CANCEL,
        "tensors.feed:Feed._next_lot",
        "lot = self._lots[0]",
        "lot = self._lots.popleft()\nself._lots.appendleft([])",
        ("api/test_streaming.py::test_a_wait_cancelled_while_a_thread_works",),
    ),
    Mutant(
        "a-tensor-made-twice-counts-twice",
        _CANCEL,
        "tensors.feed:_reader.read",
        "at += got",
        "        at += got\nstored.handed_out()",
        ("api/test_streaming.py::test_a_wait_cancelled_while_a_thread_works",),
    ),
    Mutant(
        "closes-a-file-under-its-reader",
        _UNDER,
        "tensors.descriptors:Descriptor.close",
        "not (self._closed or self._readers)",
        "not self._closed",
        (
            "api/test_opened.py::test_a_block_that_ends_under_a_reader",
            "tensors/test_descriptors.py::test_the_last_reader_closes_it",
        ),
    ),
    Mutant(
        "reads-what-is-closed",
        _UNDER,
        "tensors.descriptors:Descriptor.__enter__",
        "if self._closed:",
        "if not self._owner:",
        ("tensors/test_descriptors.py::test_the_last_reader_closes_it",),
    ),
    Mutant(
        "opens-a-file-after-the-end",
        _UNDER,
        "tensors.gather:Gatherer._open",
        "if self._closed:",
        "if not file:",
        ("api/test_opened.py::test_a_block_that_ends_under_a_reader",),
    ),
    Mutant(
        "lock-held-across-a-cancellation",
        _SOCKETS,
        "engine.receiving:Receiving.suspend",
        "unlock(self._lock)",
        "globals().setdefault('held', []).append(self._lock)",
        ("engine/test_transfer.py::test_cancelled_while_waiting",),
    ),
    Mutant(
        "answers-left-open",
        _SOCKETS,
        "network.transport:Transport.open",
        "await body.aclose()",
        "pass",
        ("network/test_sockets.py::test_one_connection_serves_again",),
    ),
    Mutant(
        "idle-connections-left-open",
        _SOCKETS,
        "network.pool:LazyClient.aclose",
        "self._backend.close()",
        "pass",
        ("network/test_sockets.py::test_no_socket_is_left",),
    ),
    Mutant(
        "cancelled-connection-left-open",
        _SOCKETS,
        "network.sockets:_connect",
        "for sock in winner:\n    sock.close()",
        "",
        ("network/test_sockets.py::test_cancelled_when_connected",),
    ),
    Mutant(
        "closes-the-callers-client",
        _SOCKETS,
        "network.pool:LazyClient.aclose",
        "if self._own is not None:",
        "self._own = self._own or self._injected\nif self._own is not None:",
        ("network/test_transport.py::test_credentials_of_a_client_stay_at_the_first_origin",),
    ),
    Mutant(
        "groups-get-out",
        _SIBLINGS,
        "tasks:plain_errors",
        "except BaseExceptionGroup as group:\n    chosen = collapse(group)",
        "except ZeroDivisionError as group:\n    chosen = group",
        (
            "sources/test_resolve.py::test_public_errors_are_no_groups",
            "engine/test_transfer.py::test_one_error_comes_out",
        ),
    ),
    Mutant(
        "interrupt-loses-to-an-error",
        _SIBLINGS,
        "tasks:collapse.rank",
        "return 0",
        "return 3",
        ("test_errors.py::test_collapse_lets_an_interrupt_win",),
    ),
    Mutant(
        "keeps-connections-that-another-call-lacks",
        _MEMORY,
        "network.ranges:_receive_from",
        "intake.span.nbytes and transport.limits.connections.owes(transport)",
        "intake.span.nbytes < 0",
        ("engine/test_receiving.py::test_who_has_several_connections_gives_one_to_who_has_none",),
    ),
    Mutant(
        "keeps-a-connection-while-it-waits-for-memory",
        _MEMORY,
        "engine.receiving:Job.wait_connected",
        "await self.transport.limits.connections.wanted()",
        "await anyio.sleep_forever()",
        ("engine/test_receiving.py::test_who_waits_for_memory_gives_its_connection_to_who_wants_it",),
    ),
    Mutant(
        "memory-not-bounded",
        _MEMORY,
        "tensors.allowance:Allowance._reserve",
        "if self.used > held and self.used + nbytes > self.limit:",
        "if nbytes < 0:",
        ("api/test_streaming.py::test_a_slow_reader_slows_the_download",),
    ),
    Mutant(
        "files-wait-for-the-memory-of-each-other",
        _MEMORY,
        "tensors.allowance:Allowance.admits",
        "if len(self._growing) >= self._most_growing:",
        "if not file:",
        ("tensors/test_allowance.py::test_all_files_come_through_whatever_the_order",),
    ),
    Mutant(
        "memory-never-given-back",
        _MEMORY,
        "tensors.feed:Feed.next",
        "self._allowance.give_back(self._owed)",
        "self._allowance.give_back(0)",
        ("api/test_streaming.py::test_a_slow_reader_slows_the_download",),
    ),
    Mutant(
        "connections-not-bounded",
        _MEMORY,
        "network/limits:Connections.__init__",
        "self._free = most",
        "self._free = 10_000",
        ("api/test_client.py::test_many_loads_share_the_bound",),
    ),
    Mutant(
        "looks-not-bounded",
        _MEMORY,
        "tasks:each",
        "limiter = anyio.CapacityLimiter(at_once)",
        "limiter = anyio.CapacityLimiter(10_000)",
        ("test_tasks.py::test_each_begins_only_so_many",),
    ),
    Mutant(
        "reporter-breaks-the-load",
        _REPORT,
        "events:Notifier.__call__",
        "except Exception:",
        "except ZeroDivisionError:",
        ("test_events.py::test_a_failing_reporter_is_called_no_more",),
    ),
    Mutant(
        "broken-reporter-called-again",
        _REPORT,
        "events:Notifier.__call__",
        "self._report = None",
        "",
        ("test_events.py::test_a_failing_reporter_is_called_no_more",),
    ),
    Mutant(
        "twin-without-a-loop-of-its-own",
        _INTERRUPT,
        "api.blocking:blocking.call",
        "return portal.run(partial(function, *args, **kwargs))",
        "return anyio.run(partial(function, *args, **kwargs))",
        ("api/test_sync.py::test_inside_asyncio",),
    ),
    Mutant(
        "sigterm-kills",
        _INTERRUPT,
        "cli.main:main",
        "signal.signal(signal.SIGTERM, _terminate)",
        "pass",
        ("cli/test_cli.py::test_an_interrupt_ends_at_once",),
    ),
)
