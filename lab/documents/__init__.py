"""Commands on pages of documentation, executed on a platform of the lab by the engine of runbooks."""
