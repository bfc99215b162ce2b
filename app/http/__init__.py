"""Below the routes: the server, its connections, and what every request goes through."""
