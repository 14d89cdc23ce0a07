"""HTTP below the routes: sockets, framing, authentication, bodies, responses."""
