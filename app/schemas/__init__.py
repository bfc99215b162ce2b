"""What goes over the wire. The descriptions are the reference: OpenAPI is made from them."""
