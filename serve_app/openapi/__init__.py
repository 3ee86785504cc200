"""What describes the calls to clients: OpenAPI documents, and the page that shows them."""
