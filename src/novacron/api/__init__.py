"""How people reach it: routes, authentication, watch cache, problem details, OpenAPI."""
