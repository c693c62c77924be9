"""Pages of a KV cache in flash: what is stored, read and written, in whole pages.

A page of P bytes holds, of one head with d channels of e bytes,

    by token     g = P / (d e) tokens of keys, or of values       16 for 4 KiB, 128 channels, fp16
    by channel   c = P / e tokens of one channel of keys          2048

Dense attention reads ceil(M / g) pages of keys and as many of values. Sparse attention (SparF)
first reads r channels of the keys, r ceil(M / c) pages by channel, then the pages by token that
hold one of the k = keep M tokens. How many these are is a matter of *locality*. Kept tokens that
are independent of each other touch (hypergeometric)

    M / g (1 - C(M - g, k) / C(M, k))

pages; tokens in runs of mean length L, a stationary chain of two states with s = keep,

    M / g (1 - (1 - s) (1 - s / (L (1 - s)))^(g - 1))

whose limits are M s / g for long runs (the ideal) and 1 - (1 - s)^g for L = 1 / (1 - s).

Sequences whose lengths are spread evenly over the g tokens of a page read on average
mean(M) / g + (g - 1) / 2g pages of keys: ceil(M / g) - M / g is 0, or 1 - r / g for the
remainders r = 1 .. g - 1.
Source: InstInfer, arXiv 2409.04992, sections on layouts and SparF; the closed forms are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from opbyte.core.errors import ConfigError

__all__ = ["Layout", "SparsePages", "sparse_pages", "touched"]


@dataclass(frozen=True)
class Layout:
    """How keys and values of one head lie in pages.

    Attributes:
        page: Bytes of a page.
        width: Channels of a head.
        element: Bytes of an element.
    """

    page: float
    width: float
    element: float

    @property
    def tokens(self) -> int:
        """Return the tokens that a page by token holds, at least one."""
        return max(1, int(self.page // (self.width * self.element)))

    @property
    def group_bytes(self) -> float:
        """Return the bytes of the pages of one group of tokens."""
        return float(np.ceil(self.tokens * self.width * self.element / self.page) * self.page)

    @property
    def column(self) -> int:
        """Return the tokens of one channel that a page by channel holds."""
        return int(self.page // self.element)

    def by_token(self, tokens: Any) -> Any:
        """Return the bytes of the pages of keys, or values, of some tokens."""
        return np.ceil(np.asarray(tokens) / self.tokens) * self.group_bytes

    def spread(self, mean: Any) -> Any:
        """Return the mean bytes of the pages of keys, or values, of sequences of spread lengths.

        Args:
            mean: Tokens of a sequence on average.
        """
        g = self.tokens
        return (np.asarray(mean) / g + (g - 1.0) / (2.0 * g)) * self.group_bytes

    def by_channel(self, tokens: Any, channels: Any) -> Any:
        """Return the bytes of the pages of some channels of the keys of some tokens."""
        return np.ceil(channels) * np.ceil(np.asarray(tokens) / self.column) * self.page

    def stored(self, tokens: Any, *, twice: bool = False) -> Any:
        """Return the bytes of pages that one head of a sequence takes.

        Args:
            twice: Keys are stored by channel, too. Short columns share pages.
        """
        elements = np.asarray(tokens, float) * self.width
        columns = np.ceil(elements / self.column) * self.page if twice else 0.0
        return 2.0 * self.by_token(tokens) + columns

    def rewritten(self, hold: Any) -> Any:
        """Return how often an appended key is programmed by channel, at least once.

        Pages can not be extended: when `hold` new tokens have come, all pages of the head that are
        not full are written anew.
        """
        return np.maximum(1.0, self.column / np.asarray(hold, float))


def touched(tokens: Any, keep: Any, group: int, run: float | None = None) -> Any:
    """Return the mean number of groups of neighbouring tokens that hold a kept one.

    Args:
        tokens: M, all of them.
        keep: Share k / M that is kept.
        group: Tokens of a group, g.
        run: Mean length of runs of kept tokens; None for independent ones.
    """
    tokens = np.asarray(tokens, float)
    keep = np.broadcast_to(np.asarray(keep, float), tokens.shape)
    whole = np.floor(tokens / group)
    rest = tokens - whole * group
    # Where one group has room for all tokens there is no whole one.
    full = np.minimum(float(group), tokens)
    return whole * _chance(tokens, keep, full, run) + np.where(
        rest > 0, _chance(tokens, keep, rest, run), 0.0
    )


def _chance(tokens: Any, keep: Any, group: Any, run: float | None) -> Any:
    """Return the chance that a group holds a kept token."""
    if run is not None:
        # `keep` of all tokens leaves no gap.
        free = np.maximum(1.0 - keep, 1e-300)
        start = np.clip(keep / (run * free), 0.0, 1.0)
        return np.where(keep >= 1.0, 1.0, 1.0 - free * (1.0 - start) ** np.maximum(group - 1.0, 0))
    none = np.ones_like(tokens)
    for i in range(int(np.max(group, initial=0.0))):
        left = np.maximum(tokens * (1.0 - keep) - i, 0.0) / np.maximum(tokens - i, 1.0)
        none = np.where(i < group, none * left, none)
    return 1.0 - none


@dataclass(frozen=True)
class SparsePages:
    """Bytes that sparse attention over one head reads, against dense attention.

    Attributes:
        channel_bytes: Pages by channel: r channels of all keys.
        token_bytes: Pages by token: keys and values of the kept tokens.
        ideal_bytes: What the chosen channels and tokens are, without pages.
        dense_bytes: Keys and values of all tokens, without pages.
    """

    channel_bytes: float
    token_bytes: float
    ideal_bytes: float
    dense_bytes: float

    @property
    def read_bytes(self) -> float:
        """Return all bytes that are read."""
        return self.channel_bytes + self.token_bytes

    @property
    def gain(self) -> float:
        """Return how many times fewer bytes are read than by dense attention."""
        return self.dense_bytes / self.read_bytes

    @property
    def ideal_gain(self) -> float:
        """Return the same without pages."""
        return self.dense_bytes / self.ideal_bytes


def sparse_pages(
    tokens: float,
    keep: float = 0.125,
    channels: float = 0.125,
    run: float | None = None,
    *,
    page: float = 4096,
    width: float = 128,
    element: float = 2,
) -> SparsePages:
    """Return what whole pages leave of sparse attention's saving (SparF), for one head.

    Args:
        tokens: Tokens in the cache.
        keep: Share of the tokens with exact attention.
        channels: Share of a key's channels that the first look reads.
        run: Mean length of runs of neighbouring kept tokens; None for independent ones.
        page: Bytes of a page.
        width: Channels of a head.
        element: Bytes of an element.
    Raises:
        ConfigError: If a share does not lie in (0, 1], or runs are shorter than they can be.
    """
    for name, value in (("keep", keep), ("channels", channels)):
        if not 0.0 < value <= 1.0:
            raise ConfigError.one("", name, "must be above 0 and at most 1", value, "")
    if tokens < 1 or page < element:
        raise ConfigError.one("", "tokens", "needs a token, and a page for an element", tokens, "")
    if run is not None and keep < 1.0 and run < max(1.0, keep / (1.0 - keep)):
        least = max(1.0, keep / (1.0 - keep))
        rule = f"must be at least {least:.3g} where {keep:g} of the tokens are kept"
        raise ConfigError.one("", "run", rule, run, "make runs longer")
    layout = Layout(page, width, element)
    size = width * element
    return SparsePages(
        float(layout.by_channel(tokens, channels * width)),
        float(2.0 * touched(tokens, keep, layout.tokens, run) * layout.group_bytes),
        (channels + 2.0 * keep) * tokens * size,
        2.0 * tokens * size,
    )
