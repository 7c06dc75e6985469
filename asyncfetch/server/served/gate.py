"""Who may see which repository."""

from __future__ import annotations

from dataclasses import dataclass
from hmac import compare_digest
from typing import TYPE_CHECKING

from ..folders.layout import kind_and_name
from ..protocol.answers import failure, invalid_credentials, repository_not_found

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from ..folders.catalog import Catalog
    from ..folders.layout import Place

__all__ = ["Gate"]


@dataclass(frozen=True)
class Gate:
    """Without the token, gated models are refused, and where there is a token, all others too."""

    token: str | None
    gated: frozenset[str]
    catalog: Catalog

    def holds_token(self, request: Request) -> bool:
        sent = request.headers.get("authorization", "").encode("latin-1")
        return self.token is not None and compare_digest(sent, f"Bearer {self.token}".encode())

    def refusal(self, request: Request, name: str = "", place: Place | None = None) -> Response | None:
        """The answer to who may not see `name` (see `qualified`), which is at `place`; None for who may. Blocks.

        Without a name: to who may see nothing.
        """
        if self.holds_token(request):
            return None
        if self.token is not None and "authorization" in request.headers:
            return invalid_credentials()
        if self._is_gated(name, place):
            return failure(403, "GatedRepo", f"Access to {name} is restricted. A token with access is needed.")
        if self.token is None:
            return None
        return repository_not_found() if name else failure(401, "Unauthorized", "This server asks for a token.")

    def _is_gated(self, name: str, place: Place | None) -> bool:
        """Whether `name` is gated: as it is, as another name of the same folder, or of one inside or around it."""
        if not self.gated:
            return False
        if name in self.gated:
            return True
        if place is None:
            return False
        gated = [found.folder for text in self.gated if (found := self.catalog.locate(*kind_and_name(text)))]
        return any(place.folder.is_relative_to(at) or at.is_relative_to(place.folder) for at in gated)
