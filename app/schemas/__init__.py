"""Schemas of all that goes over the wire. The OpenAPI document is made from their descriptions."""
