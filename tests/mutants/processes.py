"""Breaks of what several tasks, threads and processes may count on."""

from __future__ import annotations

from . import Mutant

_TWO = "two loads of one model"
_HOLDER = "a holder of a lock that stands still"
_CANCEL = "cancelled at any moment"
_SOCKETS = "sockets, descriptors and locks after failure and cancellation"
_SIBLINGS = "one of several fails"
_MEMORY = "memory and connections are bounded"
_REPORT = "a progress callback that raises"
_INTERRUPT = "Ctrl-C, and event loops that run already"

MUTANTS = (
    Mutant(
        "each-load-downloads",
        _TWO,
        "engine/transfer.py",
        "                if await self._already_there(cache, file):",
        "                if await self._already_there(cache, file) and not lock:",
        ("engine/test_transfer.py::test_two_loads_at_once",),
    ),
    Mutant(
        "no-lock",
        _TWO,
        "engine/transfer.py",
        "            lock = await lock_blob(cache, file.key, self.policy.lock_patience, lambda: self.notify(waiting))",
        "            lock = None",
        ("engine/test_transfer.py::test_two_loads_at_once",),
    ),
    Mutant(
        "waits-for-a-lock-without-end",
        _HOLDER,
        "storage/locks.py",
        "        elif time.monotonic() - since > patience:",
        "        elif patience < 0:",
        ("engine/test_transfer.py::test_a_lock_that_another_holds",),
    ),
    Mutant(
        "busy-holder-not-waited-for",
        _HOLDER,
        "storage/locks.py",
        "            seen, since = now, time.monotonic()\n        elif",
        "            seen = now\n        elif",
        ("engine/test_transfer.py::test_a_lock_that_another_holds",),
    ),
    Mutant(
        "cancellation-leaves-no-journal",
        _CANCEL,
        "engine/transfer.py",
        "        with anyio.CancelScope(shield=True), anyio.move_on_after(10):\n            for task",
        "        with anyio.CancelScope(shield=False), anyio.move_on_after(10):\n            for task",
        ("engine/test_transfer.py::test_cancelled_at_any_burst",),
    ),
    Mutant(
        "nothing-suspended",
        _CANCEL,
        "engine/transfer.py",
        "            await self._suspend()\n",
        "            self._open.clear()\n",
        ("engine/test_transfer.py::test_cancelled_at_any_burst",),
    ),
    Mutant(
        "cancellation-retried",
        _CANCEL,
        "network/retry.py",
        "return isinstance(error, NetworkError | RateLimitedError) and error.transient",
        "return True",
        ("network/test_retry.py::test_a_task_that_is_cancelled_once_ends",),
    ),
    Mutant(
        "cancelled-wait-loses-a-tensor",
        _CANCEL,
        "tensors/feed.py",
        "        entry = self._ready[0]\n"
        "        array = await run_as_task(lambda: to_thread.run_sync(entry.make)) if entry.heavy else entry.make()\n",
        "        entry = self._ready.popleft()\n"
        "        array = await run_as_task(lambda: to_thread.run_sync(entry.make)) if entry.heavy else entry.make()\n"
        "        self._ready.appendleft(entry)\n",
        ("api/test_streaming.py::test_a_wait_cancelled_while_a_thread_works",),
    ),
    Mutant(
        "cancelled-wait-loses-a-shard",
        _CANCEL,
        "tensors/feed.py",
        "        lot = self._lots[0]\n",
        "        lot = self._lots.popleft()\n        self._lots.appendleft([])\n",
        ("api/test_streaming.py::test_a_wait_cancelled_while_a_thread_works",),
    ),
    Mutant(
        "a-tensor-made-twice-counts-twice",
        _CANCEL,
        "tensors/feed.py",
        "                at += got\n",
        "                at += got\n        stored.handed_out()\n",
        ("api/test_streaming.py::test_a_wait_cancelled_while_a_thread_works",),
    ),
    Mutant(
        "lock-held-across-a-cancellation",
        _SOCKETS,
        "engine/transfer.py",
        "                    unlock(task.lock)\n        self._open",
        "                    globals().setdefault('held', []).append(task.lock)\n        self._open",
        ("engine/test_transfer.py::test_cancelled_while_waiting",),
    ),
    Mutant(
        "answers-left-open",
        _SOCKETS,
        "network/transport.py",
        "            finally:\n                await body.aclose()\n",
        "            finally:\n                pass\n",
        ("network/test_sockets.py::test_one_connection_serves_again",),
    ),
    Mutant(
        "idle-connections-left-open",
        _SOCKETS,
        "network/transport.py",
        "            self._backend.close()\n",
        "            pass\n",
        ("network/test_sockets.py::test_no_socket_is_left",),
    ),
    Mutant(
        "cancelled-connection-left-open",
        _SOCKETS,
        "network/sockets.py",
        "        for sock in winner:\n            sock.close()\n        raise\n",
        "        raise\n",
        ("network/test_sockets.py::test_cancelled_when_connected",),
    ),
    Mutant(
        "closes-the-callers-client",
        _SOCKETS,
        "network/transport.py",
        "        if self._injected is None:\n",
        "        if self._client is not None:\n",
        ("network/test_transport.py::test_credentials_of_a_client_stay_at_the_first_origin",),
    ),
    Mutant(
        "groups-get-out",
        _SIBLINGS,
        "tasks.py",
        "    except BaseExceptionGroup as group:\n        chosen = collapse(group)\n",
        "    except ZeroDivisionError as group:\n        chosen = group\n",
        (
            "sources/test_resolve.py::test_public_errors_are_no_groups",
            "engine/test_transfer.py::test_one_error_comes_out",
        ),
    ),
    Mutant(
        "interrupt-loses-to-an-error",
        _SIBLINGS,
        "tasks.py",
        "            return 0\n        if isinstance(error, Exception):",
        "            return 3\n        if isinstance(error, Exception):",
        ("test_errors.py::test_collapse_lets_an_interrupt_win",),
    ),
    Mutant(
        "memory-not-bounded",
        _MEMORY,
        "tensors/feed.py",
        "        if self._used > held and self._used + nbytes > self._limit:",
        "        if nbytes < 0:",
        ("api/test_streaming.py::test_a_slow_reader_slows_the_download",),
    ),
    Mutant(
        "memory-never-given-back",
        _MEMORY,
        "tensors/feed.py",
        "        self._give_back(self._owed)\n",
        "        self._give_back(0)\n",
        ("api/test_streaming.py::test_a_slow_reader_slows_the_download",),
    ),
    Mutant(
        "looks-not-bounded",
        _MEMORY,
        "tasks.py",
        "    limiter = anyio.CapacityLimiter(at_once)",
        "    limiter = anyio.CapacityLimiter(10_000)",
        ("sources/test_resolve.py::test_looks_are_bounded",),
    ),
    Mutant(
        "reporter-breaks-the-load",
        _REPORT,
        "events.py",
        "        except Exception:\n            self._report = None\n",
        "        except ZeroDivisionError:\n            self._report = None\n",
        ("test_events.py::test_a_failing_reporter_is_called_no_more",),
    ),
    Mutant(
        "broken-reporter-called-again",
        _REPORT,
        "events.py",
        "        except Exception:\n            self._report = None\n",
        "        except Exception:\n",
        ("test_events.py::test_a_failing_reporter_is_called_no_more",),
    ),
    Mutant(
        "twin-without-a-loop-of-its-own",
        _INTERRUPT,
        "api/blocking.py",
        "        with from_thread.start_blocking_portal() as portal:\n"
        "            result: T = portal.call(partial(function, *args, **kwargs))\n"
        "            return result\n",
        "        import anyio\n\n        return anyio.run(partial(function, *args, **kwargs))\n",
        ("api/test_sync.py::test_inside_asyncio",),
    ),
    Mutant(
        "sigterm-kills",
        _INTERRUPT,
        "cli/main.py",
        "        signal.signal(signal.SIGTERM, _terminate)\n",
        "        pass\n",
        ("cli/test_cli.py::test_an_interrupt_ends_at_once",),
    ),
)
