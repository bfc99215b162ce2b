"""The layer below the routes: the server, its connections, and the steps of every request."""
