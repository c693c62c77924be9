"""Published and measured numbers against ours, each with the class that says what it is worth."""

from opbyte.sweeps.validation.published import Published, load_published, published_catalog
from opbyte.sweeps.validation.validate import Verdict, sources_of, validate_source

__all__ = [
    "Published",
    "Verdict",
    "load_published",
    "published_catalog",
    "sources_of",
    "validate_source",
]
