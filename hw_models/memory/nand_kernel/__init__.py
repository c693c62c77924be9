"""Flash, page by page: a compiled loop (`loops`) and its readable twin (`twin`)."""
