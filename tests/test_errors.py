"""The error tree: drawn, whole, picklable, and free of secrets."""

from __future__ import annotations

import copy
import inspect
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncfetch import errors
from asyncfetch.errors import (
    AsyncfetchError,
    ChangedError,
    DiskFullError,
    LinkExpiredError,
    MissingTensorError,
    ModelMismatchError,
    NetworkError,
    OfflineError,
    ProtocolError,
    ProxyError,
    RateLimitedError,
    ServerError,
    ShardNotFoundError,
    SourceError,
    StalledError,
    StorageError,
    TimedOutError,
    redact_url,
)
from asyncfetch.tasks import collapse

from .kit.canaries import shown
from .kit.samples import ERRORS, SIGNED

CLASSES = [thing for _, thing in inspect.getmembers(errors, inspect.isclass) if issubclass(thing, AsyncfetchError)]


def drawn() -> dict[str, str | None]:
    """Each class of the tree in the docstring, with the one above it."""
    above: dict[str, str | None] = {}
    branch: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([│ ]*)(?:[├└]── )?(\w+Error)\b", line)
        if match and line.startswith("    ") and ("──" in line or not match[1]):
            depth = 0 if "──" not in line else len(match[1]) // 4 + 1
            branch[depth:] = [match[2]]
            above[match[2]] = branch[depth - 1] if depth else None
    return above


# How each class that quotes others is made of their words.
QUOTING = {
    "AsyncfetchError": lambda words: AsyncfetchError(f"It failed: {words}."),
    "AccessError": lambda words: errors.AccessError(f"The Hub refuses it: {words}."),
    "InvalidIndexError": lambda words: errors.InvalidIndexError("index.json", words),
    "InvalidHeaderError": lambda words: errors.InvalidHeaderError("x.safetensors", words),
    "ChangedError": lambda words: ChangedError("x.safetensors", words),
    "NetworkError": lambda words: NetworkError(words, url=SIGNED),
    "ProtocolError": lambda words: ProtocolError(words, url=SIGNED),
    "StalledError": lambda words: StalledError(words, url=SIGNED),
    "CertificateError": lambda words: errors.CertificateError(words, url=SIGNED),
    "StorageError": lambda words: StorageError("/cache/x", words),
}


@pytest.mark.parametrize("name", QUOTING)
@pytest.mark.parametrize(
    ("words", "end"),
    [
        ("it is away", "it is away."),
        ("It is away.", "It is away."),
        ("It is away. ", "It is away."),
        ("Is it away?", "Is it away?"),
        ("It is away!", "It is away!"),
        ("wait...", "wait..."),
        ("wait…", "wait…"),
        ("v1.2.3", "v1.2.3."),
        ("e.g. this", "e.g. this."),
    ],
)
def test_others_sentences_have_one_end(name: str, words: str, end: str) -> None:
    """What a server or the system says may be a sentence: no second full stop comes after its own."""
    error = QUOTING[name](words)
    assert error.message.endswith(end)
    assert not re.search(r"(?<!\.)\.\.(?!\.)|[!?…]\.", str(error))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_no_error_ends_twice() -> None:
    """None of the tree, with or without its hint."""
    for error in ERRORS.values():
        assert not re.search(r"(?<!\.)\.\.(?!\.)|[!?]\.", str(error)), str(error)


def test_the_drawn_tree_is_the_tree() -> None:
    """Every class is in the docstring below the class that it derives from, and nothing else is there."""
    real = {cls.__name__: None if cls is AsyncfetchError else cls.__mro__[1].__name__ for cls in CLASSES}
    assert drawn() == real


def test_all_is_whole() -> None:
    """`__all__` has every class, what redacts and what translates; the samples have every class."""
    assert set(errors.__all__) == {cls.__name__ for cls in CLASSES} | {"redact_url", "storage_errors"}
    assert set(ERRORS) == set(CLASSES)


def test_codes_are_distinct() -> None:
    """Each class has a code of its own, in lower case: machines tell errors apart by it."""
    codes = [cls.code for cls in CLASSES]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


def test_what_is_transient() -> None:
    """Exactly these may succeed when called again; a protocol error says so for itself."""
    transient = {cls for cls in CLASSES if cls.transient}
    network = {NetworkError, ServerError, ProtocolError, ProxyError, StalledError, LinkExpiredError}
    assert transient == network | {ChangedError, RateLimitedError, TimedOutError}
    assert not ProtocolError("x", url="http://h/").transient
    assert ProtocolError("x", url="http://h/", transient=True).transient


@pytest.mark.parametrize("error", ERRORS.values(), ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("way", ["pickle", "copy"])
def test_errors_survive_pickling(error: AsyncfetchError, way: str) -> None:
    """Type, text, data, hint and notes come through a pickle, as between processes, and through copy."""
    error.__dict__.pop("__notes__", None)
    error.add_note("seen on the way")
    again = pickle.loads(pickle.dumps(error)) if way == "pickle" else copy.copy(error)
    assert type(again) is type(error)
    assert (str(again), again.args, again.__dict__) == (str(error), error.args, error.__dict__)
    assert (again.message, again.hint, again.transient) == (error.message, error.hint, error.transient)


@pytest.mark.parametrize("error", ERRORS.values(), ids=lambda error: type(error).__name__)
def test_texts(error: AsyncfetchError) -> None:
    """The message is a sentence and leads, the hint follows; neither text nor data holds the signature."""
    text = str(error)
    assert text.startswith(error.message)
    assert error.message.endswith((".", "…", "?"))
    assert text == (f"{error.message} {error.hint}" if error.hint else error.message)
    assert not shown(repr((text, error, error.args, error.__dict__)))


def test_data_is_kept() -> None:
    """What a caller needs to act on is on the error, not only in its text."""
    full = ERRORS[DiskFullError]
    assert isinstance(full, DiskFullError)
    assert (full.path, full.needed, full.free) == ("/cache/x", 1_000_000, 5)
    assert "1,000,000" in str(full)
    entry = ERRORS[ShardNotFoundError]
    assert isinstance(entry, ShardNotFoundError)
    assert (entry.file, entry.source, entry.index, entry.commit) == ("b.safetensors", "org/name", "index.json", None)
    missing = ERRORS[MissingTensorError]
    assert isinstance(missing, MissingTensorError)
    assert missing.tensors == ("a", "b", "c", "d")
    assert "4 tensor(s)" in str(missing)
    assert "'d'" not in str(missing)


def test_a_model_mismatch_is_told_in_bounds() -> None:
    """All of it is data; of what is many, a few are shown, and how many there are. No way out is known here."""
    shapes = {f"s{n}": ((n,), (n + 1,)) for n in range(20)}
    error = ModelMismatchError(
        missing=[f"m{n}" for n in range(1200)],
        shapes=shapes,
        dtypes={"d": ("float32", "bfloat16")},
        reasons=["so be it"],
    )
    assert (error.shapes, error.dtypes, error.reasons) == (shapes, {"d": ("float32", "bfloat16")}, ("so be it",))
    assert "1,200 missing (m0, m1, m2, m3, m4, …)" in str(error)
    assert "s7 is (7,) in the model and (8,) in the checkpoint; 20 such in all; d is float32 in the" in str(error)
    assert "s8" not in str(error)
    assert str(error).endswith("; so be it.")
    assert error.hint == ""


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (SIGNED, "https://cdn.example:8443/a/b.safetensors?…"),
        ("https://h/a", "https://h/a"),
        ("https://h/a#f", "https://h/a"),
        ("https://user@h/a?b", "https://h/a?…"),
        ("https://user:p@ss@h/a", "https://h/a"),
        ("//user:pw@h/a", "//h/a"),
        ("model.safetensors", "model.safetensors"),
        ("http://[::1/x?sig=1", "<unreadable URL>"),
        ("", ""),
    ],
)
def test_redact_url(url: str, shown: str) -> None:
    """Credentials, query and fragment go; host, port and path stay; what is no URL does not raise."""
    assert redact_url(url) == shown


@given(
    st.text("abc:@", min_size=1),
    st.text(st.characters(codec="ascii", exclude_categories=["C"], exclude_characters="#"), min_size=1),
)
def test_redact_url_never_shows_a_query(user: str, query: str) -> None:
    """Whatever stands before the last @ of the authority or after the first ? is not shown."""
    shown = redact_url(f"https://{user}@host/path?{query}")
    assert shown == "https://host/path?…"


def test_collapse_prefers_ours() -> None:
    """An error of ours wins over others wherever it is; the others hang on it as notes."""
    ours, other, echo = StorageError("/x", "denied"), ValueError("v"), BaseException("cancelled")
    group = BaseExceptionGroup("g", [echo, ExceptionGroup("h", [other]), BaseExceptionGroup("i", [ours])])
    assert collapse(group) is ours
    assert ours.__notes__ == ["Also failed: ValueError: v"]


def test_collapse_keeps_the_first_of_equals() -> None:
    """Of several errors of one rank the first is the one; none is lost."""
    first, second = OfflineError("a", "x"), OfflineError("b", "y")
    assert collapse(ExceptionGroup("g", [ExceptionGroup("h", [first]), second])) is first
    assert len(first.__notes__) == 1
    assert "of b is not" in first.__notes__[0]


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt(), SystemExit(3)])
def test_collapse_lets_an_interrupt_win(interrupt: BaseException) -> None:
    """Ctrl-C is not an error among others."""
    assert collapse(BaseExceptionGroup("g", [SourceError("x"), interrupt])) is interrupt


def test_collapse_of_a_cancellation_alone() -> None:
    """A cancellation comes out where there is nothing else, and loses against any error."""
    cancelled = BaseException("cancelled")
    assert collapse(BaseExceptionGroup("g", [cancelled])) is cancelled
    error = RuntimeError("bug")
    assert collapse(BaseExceptionGroup("g", [cancelled, error])) is error
