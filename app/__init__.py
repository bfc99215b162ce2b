"""HTTP: takes jobs, reports on them, serves their images. Of the rest it imports what knows no torch."""
