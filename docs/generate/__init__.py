"""Write the reference pages that are made from the code: `python -m docs.generate`, or `make docs-reference`."""
