"""Names as an attacker chooses them: paths, addresses and headers that mean something else to the next reader."""

from __future__ import annotations

from hypothesis import strategies as st

PIECES = [
    "..", "..", "../", "../", "../../../", ".", "./", "/", "//", "\\", "..\\", ":", "C:", "c:\\", "\\\\host\\share\\",
    "~", "~root/", "%2e%2e", "%2E%2e/", "%2f", "%5c", "%00", "%", "%25", "?", "#", "@", "&", "=", ";", "*", "|", "<",
    ">", '"', "'", "`id`", "$HOME", "$(id)", "\0", "\n", "\r\n", "\t", "\x1b", " ", "  ", "\x7f", "\x85", "\u2028",
    "\u202e", "\u200b", "\ufeff", "\ud800", "\udfff", "．．", "／", "＼", "：", "。", "\u2024\u2024", "\u2215", "é",
    "e\u0301", "ß", "😀", "\uac00", "a", "b", "x", "0", "-", "--", "_", "con", "nul.", "aux", "com1", ".git",
    ".hidden", "x" * 100, "x" * 256, "model", "org", "main", "refs", "blobs", "snapshots", "resolve", "..;", "tmp",
    "canary", "canary.safetensors", "etc/passwd", "file:///", "http://", "https://", "data:,", "javascript:",
    "model.safetensors", "/resolve/main/", "org/model", "private/model", "models--org--model", "@main",
    ".safetensors", ".index.json", ".bin", "None",
]  # fmt: skip
names = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=8).map("".join)


def almost(good: str, *, alphabet: str) -> st.SearchStrategy[str]:
    """`good`, whole or cut, with something before, in or after it; or as many letters of its alphabet."""
    pieces = st.sampled_from(PIECES)
    at = st.integers(0, len(good))
    return st.one_of(
        st.just(good),
        st.text(alphabet, min_size=len(good) - 1, max_size=len(good) + 1),
        st.tuples(pieces, st.just(good)).map("".join),
        st.tuples(st.just(good), pieces).map("".join),
        st.tuples(at, pieces).map(lambda pair: good[: pair[0]] + pair[1] + good[pair[0] :]),
        st.tuples(at, pieces).map(lambda pair: good[: pair[0]] + pair[1] + good[pair[0] + 1 :]),
        names,
    )


hashes = almost("0123456789abcdef0123456789abcdef01234567", alphabet="0123456789abcdefABCDEF٠")
long_hashes = almost("0123456789abcdef" * 4, alphabet="0123456789abcdef")
shards = st.one_of(names.map(lambda name: name + ".safetensors"), names, almost("sub/x.safetensors", alphabet="ab/."))
repo_ids = almost("org/model", alphabet="ab-._/")
variants = almost("fp16", alphabet="ab-._/")
revisions = almost("refs/pr/1", alphabet="ab-._/")


def locations(here: str, others: list[str]) -> st.SearchStrategy[str]:
    """What a Location header may say: the server's own address and others, told apart only by careful reading."""
    hosts = [address.removeprefix("http://") for address in (here, *others)]
    schemes = st.sampled_from(
        ["http://", "http://", "http://", "HTTP://", "//", "///", "http:/", "http:", "https://", "ftp://"]
    )
    host = st.sampled_from(hosts)
    glue = st.sampled_from(
        ["@", ":x@", "\\@", "#@", "?@", "/@", "%40", "%00", "\t", " ", ".", ":80@", ";", "&", "\\", "%2f@"]
    )
    authority = st.one_of(host, st.tuples(host, glue, host).map("".join), st.tuples(glue, host).map("".join))
    path = st.tuples(st.sampled_from(["", "/", "/org/model/resolve/main/x.safetensors", "/../..", "\\x"]), names).map(
        "".join
    )
    absolute = st.tuples(schemes, authority, path).map("".join)
    return st.one_of(absolute, absolute, path, names)


def as_header(text: str) -> str:
    """`text` as the bytes of a header, each as one letter, without what would end it."""
    return text.encode("utf-8", "surrogatepass").decode("latin-1").replace("\r", "").replace("\n", "").replace("\0", "")
