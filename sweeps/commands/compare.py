"""x."""


def command() -> int:
    """X."""
    return 0
