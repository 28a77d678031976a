"""GET /connect: a page with what to paste into each client to reach this server."""

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from verger.connect.address import parse_host_header
from verger.connect.entries import Facts, load_clients
from verger.connect.page import HEADERS, connect_page
from verger.errors import InvalidRequest
from verger.gateway.service import Service


class Connect:
    """The one route."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._clients = load_clients()

    async def get(self, request: Request) -> Response:
        """For the address under which the client reached this server: its Host header."""
        is_tls = request.url.scheme == "https"
        try:
            address = parse_host_header(request.headers.get("host", ""), is_tls=is_tls)
        except ValueError:
            raise InvalidRequest(
                "The Host header names no host; open this page under the server's name or address."
            ) from None
        facts = Facts(address, self._service.settings.model_id, self._service.context_tokens)
        return HTMLResponse(connect_page(facts, self._clients), headers=HEADERS)
