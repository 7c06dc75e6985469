"""Breaks of how buckets are asked: addresses, credentials, links, refusals, listings."""

from __future__ import annotations

from . import Mutant

_REFUSED = "a bucket that is missing, closed or elsewhere"
_LINKS = "links to objects"
_STATES = "an object that is replaced"
_ASKING = "who asks a bucket, and where"
_LISTED = "a listing of a bucket"

MUTANTS = (
    Mutant(
        "missing-bucket-taken-for-a-missing-file",
        _REFUSED,
        "sources.store_refusals:refusal",
        "if code in _NO_BUCKET:",
        "if not code:",
        ("sources/test_stores.py::test_refusals",),
    ),
    Mutant(
        "other-regions-not-asked",
        _REFUSED,
        "sources.store_finder:StorePlace._ask",
        'region not in ("", here) and not moved',
        "False",
        ("sources/test_stores.py::test_another_region",),
    ),
    Mutant(
        "wrong-clock-not-told",
        _REFUSED,
        "sources.store_refusals:refusal",
        '"Skewed" in code or abs(clock) > 300',
        "False",
        ("sources/test_stores.py::test_refusals",),
    ),
    Mutant(
        "link-used-to-its-end",
        _LINKS,
        "sources.store_finder:StorePlace.target",
        "time.monotonic() >= target.until",
        "False",
        ("sources/test_stores.py::test_links_before_they_end",),
    ),
    Mutant(
        "header-goes-along-unsigned",
        _LINKS,
        "sources.signature:with_header",
        'fields[_SIGNED] = ";".join(sorted(headers))',
        "pass",
        ("sources/test_stores.py::test_one_more_signed_header",),
    ),
    Mutant(
        "blob-signed-by-half",
        _LINKS,
        "sources.signature:for_blob",
        '*[""] * 7',
        '*[""] * 6',
        ("sources/test_stores.py::test_names_that_azure_signs_as_they_are",),
    ),
    Mutant(
        "another-object-behind-a-new-link",
        _STATES,
        "sources.store_finder:StorePlace.target",
        "(again.size, again.version) != (file.size, file.version)",
        "False",
        ("sources/test_stores.py::test_replaced_while_its_link_is_renewed",),
    ),
    Mutant(
        "object-without-its-etag",
        _STATES,
        "sources.store_finder:StorePlace._looked_at",
        "signed=True, validator=etag",
        "signed=True, validator=None",
        ("sources/test_stores.py::test_replaced_under_the_download",),
    ),
    Mutant(
        "hash-of-hashes-taken-for-a-hash",
        _STATES,
        "sources.store_finder:_sha256_in",
        "not whole or",
        "",
        ("sources/test_stores.py::test_which_hashes_count",),
    ),
    Mutant(
        "endpoints-share-a-cache",
        _ASKING,
        "sources.store_finder:StorePlace.__init__",
        "url_repo_id(source.address, source.endpoint)",
        "url_repo_id(source.address)",
        ("sources/test_stores.py::test_places_of_the_same_name",),
    ),
    Mutant(
        "signature-in-an-address-taken",
        _ASKING,
        "sources.bucket:bucket_of",
        'if "?" in rest:',
        "if not rest:",
        ("sources/test_store_env.py::test_no_addresses",),
    ),
    Mutant(
        "key-of-another-account",
        _ASKING,
        "sources.store_env:_azure",
        'source.account != told["account_name"]',
        "not source.account",
        ("sources/test_store_env.py::test_what_the_environment_says",),
    ),
    Mutant(
        "half-of-a-key-is-none",
        _ASKING,
        "sources.store_env:_way_to_aws",
        'if keys["access_key_id"] or keys["secret_access_key"]:',
        "if False:",
        ("sources/test_store_env.py::test_what_makes_no_sense",),
    ),
    Mutant(
        "machine-without-credentials-is-fatal",
        _ASKING,
        "sources.stores:Store._opened_by_machine",
        "except Exception as error:",
        "except MemoryError as error:",
        ("sources/test_stores.py::test_anonymous",),
    ),
    Mutant(
        "forked-child-waits-for-ever",
        _ASKING,
        "sources.stores:_refuse_forks",
        "_pid not in (None, os.getpid())",
        "_pid == 0",
        ("sources/test_stores.py::test_in_a_forked_child",),
    ),
    Mutant(
        "refused-listing-ends-a-download",
        _LISTED,
        "sources.files:_listing",
        'return None, error.message.rstrip(".")',
        "raise",
        ("sources/test_stores.py::test_a_listing_for_others_alone",),
    ),
    Mutant(
        "objects-for-folders-are-files",
        _LISTED,
        "sources.store_finder:StorePlace._files_of",
        "one.size or",
        "True or",
        ("sources/test_stores.py::test_download",),
    ),
    Mutant(
        "companions-without-a-record",
        _LISTED,
        "sources.files:add_companions",
        "located.commit, located.identities = state.commit, state.identities",
        "pass",
        ("sources/test_stores.py::test_a_companion_that_changes",),
    ),
)
