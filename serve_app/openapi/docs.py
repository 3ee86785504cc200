"""The OpenAPI documents and the page that shows them, as routes. All of them can be turned off.

The page is our own and small: it has to work without any other address and under a policy that
forbids inline scripts and styles, and the one package that ships a ready page for that,
`swagger-ui-bundle`, is of 2023.
"""

from __future__ import annotations

from pathlib import Path

from serve_app.model import ServedModel
from serve_app.openapi.catalog import catalog_document
from serve_app.openapi.model import model_document
from serve_app.pages import page_routes
from serve_app.replies import Reply, json_reply
from serve_app.request import Request
from serve_app.routing import Routes

PATH = "/openapi.json"
FOLDER = Path(__file__).parent / "page"


def model_docs(model: ServedModel) -> Routes:
    """Return the document of a model; nothing where documents are turned off."""
    if not model.has_docs:
        return {}
    made: dict[str, Reply] = {}  # by the place where Serve has mounted the model: one

    async def get_document(request: Request) -> Reply:
        root = request.scope.get("root_path", "")
        if root not in made:
            made[root] = json_reply(model_document(model, root))
        return made[root]

    return {PATH: {"GET": get_document}}


def catalog_docs() -> Routes:
    """Return the document of the server's own calls, and the page."""
    reply = json_reply(catalog_document())

    async def get_document(request: Request) -> Reply:
        return reply

    return {PATH: {"GET": get_document}, **page_routes(FOLDER, "/docs", "/docs")}
