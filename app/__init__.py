"""The HTTP API: accepts jobs, reports on them, serves their images. It never imports torch."""
