"""Write the reference pages that are made from the code: `make docs-reference`."""
