"""Breaks of connections and bodies."""

from __future__ import annotations

from . import Mutant

_CLOSED = "closed early, the length is known"
_EOF = "closed early, nothing tells the length"
_RESET = "reset, in the head or in the body"
_STALE = "an idle connection that the server has closed, or that is out of step"
_SILENT = "silence"
_DRIP = "a drip: a few bytes before each time-out"
_CONNECT = "no name, no route, nobody listens, nobody answers"
_CERTIFICATE = "a certificate that is not trusted"
_FOREIGN = "an exception of a library, or of the system"

MUTANTS = (
    Mutant(
        "trusts-the-end-of-a-body",
        _CLOSED,
        "transport.py",
        "            if self._left and not received:\n",
        "            if self._left and not received and received:\n",
        ("test_transport.py::test_a_body_that_misses_bytes_is_never_complete",),
    ),
    Mutant(
        "never-retries",
        _CLOSED,
        "policy.py",
        "return isinstance(error, NetworkError | RateLimitedError) and error.transient",
        "return False",
        ("test_transport.py::test_small_answers_are_fetched_again",),
    ),
    Mutant(
        "asks-for-bytes-again",
        _CLOSED,
        "ranges.py",
        "            rest = Span(span.start + len(data), span.stop)",
        "            data.clear()\n            rest = span",
        ("test_ranges.py::test_goes_on_where_it_broke",),
    ),
    Mutant(
        "asks-for-a-shard-again",
        _CLOSED,
        "transfer.py",
        "                span = Span(lease.start, lease.stop)\n",
        "                span = Span(max(lease.start - 1000, 0), lease.stop)\n                lease.start = span.start\n",
        ("test_transfer.py::test_resumes_where_it_broke",),
    ),
    Mutant(
        "budget-refilled-by-any-byte",
        _CLOSED,
        "policy.py",
        "        if self._unit >= self.policy.progress_unit:",
        "        if self._unit:",
        ("test_policy.py::test_only_real_progress_refills_the_budget", "test_transfer.py::test_no_progress_gives_up"),
    ),
    Mutant(
        "budget-never-refilled",
        _CLOSED,
        "policy.py",
        "            self.failures = 0\n\n",
        "            pass\n\n",
        ("test_transfer.py::test_link_that_drops_all_the_time",),
    ),
    Mutant(
        "small-read-trusts-eof",
        _EOF,
        "ranges.py",
        '                    if not got:\n                        raise NetworkError("the body ended early", url=target.url)\n'
        "                    budget.progress(got)\n    return bytes(data)",
        "                    if not got:\n                        break\n"
        "                    budget.progress(got)\n    return bytes(data)",
        ("test_ranges.py::test_eof_is_not_the_end",),
    ),
    Mutant(
        "shard-trusts-eof",
        _EOF,
        "transfer.py",
        '                            raise NetworkError("the body ended early", url=target.url)',
        "                            break",
        ("test_faults.py::test_survived",),
    ),
    Mutant(
        "accepts-a-shard-of-unknown-size",
        _EOF,
        "web_finder.py",
        "        if size is None and not reply.truncated:",
        "        if size is None:",
        ("test_transfer.py::test_web_server_without_ranges_and_lengths",),
    ),
    Mutant(
        "swallows-a-broken-chunk",
        _EOF,
        "transport.py",
        "        if self._failure is not None and not data:\n            raise self._failure\n",
        "",
        ("test_transport.py::test_small_answers_are_fetched_again",),
    ),
    Mutant(
        "length-of-a-chunked-body",
        _EOF,
        "transport.py",
        'if re.fullmatch(r"[0-9]{1,18}", length) and not chunked else None',
        'if re.fullmatch(r"[0-9]{1,18}", length) else None',
        ("test_transport.py::test_chunks_win_over_a_length",),
    ),
    Mutant(
        "bytes-before-a-reset-are-lost",
        _RESET,
        "network.py",
        "                if not filled:\n                    raise\n",
        "                raise\n",
        ("test_network.py::test_burst_keeps_what_came_before_a_reset",),
    ),
    Mutant(
        "chunks-before-a-break-are-lost",
        _RESET,
        "transport.py",
        "        if self._failure is not None and not data:",
        "        if self._failure is not None:",
        ("test_transport.py::test_what_came_before_a_break_counts",),
    ),
    Mutant(
        "uses-a-closed-connection",
        _STALE,
        "network.py",
        "        return self._sock.fileno() != -1 and not _readable(self._sock)",
        "        return self._sock.fileno() != -1",
        ("test_network.py::test_closed_connections_do_not_serve_again",),
    ),
    Mutant(
        "keeps-a-connection-out-of-step",
        _STALE,
        "network.py",
        "        if self.reusable and not self._surplus:",
        "        if self.reusable:",
        ("test_network.py::test_connection_out_of_step_is_dropped",),
    ),
    Mutant(
        "no-read-time-out",
        _SILENT,
        "transport.py",
        "not await stream.readable(self._policy.read_timeout):",
        "not await stream.readable(3600):",
        ("test_transport.py::test_silence_is_a_stall",),
    ),
    Mutant(
        "no-time-out-for-the-head",
        _SILENT,
        "transport.py",
        "policy.read_timeout, policy.read_timeout, policy.connect_timeout)",
        "3600, policy.read_timeout, policy.connect_timeout)",
        ("test_faults.py::test_survived",),
    ),
    Mutant(
        "no-stall-floor",
        _DRIP,
        "transport.py",
        "        if count < self._policy.stall_bytes:",
        "        if count < 0:",
        ("test_transport.py::test_a_drip_is_a_stall", "test_ranges.py::test_slow_drip"),
    ),
    Mutant(
        "no-connect-time-out",
        _CONNECT,
        "network.py",
        "            with anyio.fail_after(timeout):",
        "            with anyio.fail_after(None):",
        ("test_network.py::test_connect_time_out",),
    ),
    Mutant(
        "no-time-out-of-the-handshake",
        _CONNECT,
        "network.py",
        "await self._wait(error, timeout, httpcore.ConnectTimeout)",
        "await self._wait(error, None, httpcore.ConnectTimeout)",
        ("test_network.py::test_hung_handshake",),
    ),
    Mutant(
        "waits-for-the-first-address",
        _CONNECT,
        "network.py",
        "                with anyio.move_on_after(_STAGGER):",
        "                with anyio.move_on_after(30):",
        ("test_network.py::test_happy_eyeballs",),
    ),
    Mutant(
        "resolver-errors-get-out",
        _CONNECT,
        "network.py",
        "        except OSError as error:\n            raise httpcore.ConnectError(_describe(error)) from error\n"
        "        for option",
        "        except ConnectionError as error:\n            raise httpcore.ConnectError(_describe(error)) from error\n"
        "        for option",
        ("test_network.py::test_unknown_host",),
    ),
    Mutant(
        "certificates-not-checked",
        _CERTIFICATE,
        "transport.py",
        "return httpx.create_ssl_context()",
        "return httpx.create_ssl_context(verify=False)",
        ("test_network.py::test_untrusted_certificate", "test_network.py::test_certificate_of_another_host"),
    ),
    Mutant(
        "certificate-error-not-recognized",
        _CERTIFICATE,
        "wall.py",
        "    if isinstance(error, ssl.SSLCertVerificationError) or _caused_by_certificate(error):",
        "    if isinstance(error, ssl.SSLCertVerificationError):",
        ("test_network.py::test_untrusted_certificate",),
    ),
    Mutant(
        "certificate-error-retried",
        _CERTIFICATE,
        "errors.py",
        '    code = "certificate"\n    transient = False\n',
        '    code = "certificate"\n',
        ("test_errors.py::test_what_is_transient", "test_network.py::test_untrusted_certificate"),
    ),
    Mutant(
        "library-errors-get-out",
        _FOREIGN,
        "wall.py",
        'frozenset({"httpx", "httpcore", "httpx2", "httpcore2"})',
        "frozenset(())",
        ("test_transport.py::test_what_is_not_http",),
    ),
    Mutant(
        "socket-errors-get-out",
        _FOREIGN,
        "wall.py",
        "        if isinstance(error, OSError):",
        "        if isinstance(error, InterruptedError):",
        ("test_transport.py::test_small_answers_are_fetched_again",),
    ),
    Mutant(
        "retries-everything",
        _FOREIGN,
        "policy.py",
        "return isinstance(error, NetworkError | RateLimitedError) and error.transient",
        "return isinstance(error, Exception)",
        ("test_policy.py::test_other_errors_come_out_at_once", "test_network.py::test_untrusted_certificate"),
    ),
    Mutant(
        "proxy-ignored",
        "a proxy of the environment",
        "transport.py",
        '            if {"http", "https", "all"} & getproxies().keys():',
        "            if not getproxies:",
        ("test_transport.py::test_proxy_of_the_environment",),
    ),
)
