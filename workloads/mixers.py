"""What looks along the sequence: attention in its kinds, Mamba-2, and short convolutions.

Each class separates *matrices* (what quantisation shrinks and a GEMM reads) from *vectors* (norms,
biases, convolution taps, which stay in the activation's type).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Attention:
    """Softmax attention with a KV cache: MHA, GQA or MQA by `kv_heads`.

    Attributes:
        v_head_dim: Width of a value head, 0 for the key's.
        window: Tokens that a query sees, itself included; 0 for all (sliding window).
        chunk: Attention inside aligned chunks of this many tokens, 0 for none (Llama 4).
        qkv_bias: Query, key and value projections have biases.
        out_bias: The output projection has a bias.
        shared_key_value: One projection serves as key and value (Gemma 4's `attention_k_eq_v`);
            the cache still holds both, as the key is rotated and normalised.
        reuses_cache: The layer reads the cache of the last layer of its kind that writes one: it
            has no K/V projections and writes nothing, but reads as much as that layer.
        qk_norm: Elements of learned query and key norms of one layer, for the parameter count.
        sinks: A learned attention sink for each head (gpt-oss).
        cross: The layer attends to the encoder's output (encoder-decoder models): its cache is
            written once, of the input's length, and does not grow while decoding.
        rotary: Query and key are rotated by position.
        output_gate: A gate as wide as the query projection.
        causal: A query sees earlier tokens only (false in encoders).
        sub_norm: A norm as wide as all heads before the output projection (BitNet).
    """

    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int = 0
    window: int = 0
    chunk: int = 0
    qkv_bias: bool = False
    out_bias: bool = False
    shared_key_value: bool = False
    reuses_cache: bool = False
    qk_norm: int = 0
    sinks: bool = False
    cross: bool = False
    rotary: bool = True
    output_gate: bool = False
    causal: bool = True
    sub_norm: bool = False

    @property
    def value_dim(self) -> int:
        """Return the width of one value head."""
        return self.v_head_dim or self.head_dim

    @property
    def query_width(self) -> int:
        """Return the width of the query projection, its gate included."""
        return self.heads * self.head_dim * (2 if self.output_gate else 1)

    @property
    def key_width(self) -> int:
        """Return the width of the key projection, 0 where the layer has none."""
        return 0 if self.reuses_cache else self.kv_heads * self.head_dim

    @property
    def value_width(self) -> int:
        """Return the width of the value projection, 0 where the layer has none."""
        none = self.reuses_cache or self.shared_key_value
        return 0 if none else self.kv_heads * self.value_dim

    @property
    def out_width(self) -> int:
        """Return the width that the output projection reads."""
        return self.heads * self.value_dim

    def matrix_parameters(self, hidden: int) -> int:
        """Return the elements of the projections for a hidden size."""
        return hidden * (self.query_width + self.key_width + self.value_width + self.out_width)

    def vector_parameters(self, hidden: int) -> int:
        """Return the elements of biases, norms and sinks for a hidden size."""
        qkv = (self.query_width + self.key_width + self.value_width) * self.qkv_bias
        sub = self.out_width * self.sub_norm
        return qkv + hidden * self.out_bias + self.qk_norm + self.heads * self.sinks + sub

    def parameters(self, hidden: int) -> int:
        """Return the learned parameters for a hidden size."""
        return self.matrix_parameters(hidden) + self.vector_parameters(hidden)

    @property
    def kv_elements_per_token(self) -> int:
        """Return the elements that one token adds to this layer's cache: 2 x heads x width."""
        return 0 if self.reuses_cache else self.kv_heads * (self.head_dim + self.value_dim)

    @property
    def kv_elements_read_per_token(self) -> int:
        """Return the cached elements that a query reads for each token that it sees."""
        return self.kv_heads * (self.head_dim + self.value_dim)

    @property
    def state_elements(self) -> int:
        """Return the elements of constant state of one sequence: attention has none."""
        return 0


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention (MLA): one compressed vector per token serves all heads.

    DeepSeek-V2 (arXiv 2405.04434), section 2.1. With `index_topk` a lightning indexer selects the
    tokens that a query reads (DeepSeek-V3.2's sparse attention); its key is cached beside.

    Attributes:
        q_lora_rank: Width of the compressed query, 0 when the query is projected directly.
        kv_lora_rank: Width of the compressed key and value, normalised before it is cached.
        nope_dim: Width of a head's query and key without position.
        rope_dim: Width of the rotated key that all heads share.
        v_dim: Width of a value head.
        index_heads: Heads of the indexer, each of `index_dim`.
        index_topk: Tokens that a query reads, 0 for all.
        bias: Biases on the two down projections and the output (`attention_bias`).
    """

    heads: int
    q_lora_rank: int
    kv_lora_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    index_heads: int = 0
    index_dim: int = 0
    index_topk: int = 0
    window: int = 0
    chunk: int = 0
    bias: bool = False

    @property
    def query_width(self) -> int:
        """Return the width of all heads' queries."""
        return self.heads * (self.nope_dim + self.rope_dim)

    @property
    def down_width(self) -> int:
        """Return the width of the key-value down projection, the shared rotated key included."""
        return self.kv_lora_rank + self.rope_dim

    def matrix_parameters(self, hidden: int) -> int:
        """Return the elements of the projections for a hidden size, the indexer's included."""
        query = self.q_lora_rank * (hidden + self.query_width) or hidden * self.query_width
        up = self.kv_lora_rank * self.heads * (self.nope_dim + self.v_dim)
        out = self.heads * self.v_dim * hidden
        return query + hidden * self.down_width + up + out + self.indexer_matrices(hidden)

    def indexer_matrices(self, hidden: int) -> int:
        """Return the elements of the indexer: query up, one shared key, head weights."""
        if not self.index_topk:
            return 0
        query = (self.q_lora_rank or hidden) * self.index_heads * self.index_dim
        return query + hidden * (self.index_dim + self.index_heads)

    def vector_parameters(self, hidden: int) -> int:
        """Return the elements of norms and biases; the indexer's key norm is a layer norm."""
        norms = self.q_lora_rank + self.kv_lora_rank + 2 * self.index_dim * bool(self.index_topk)
        return norms + self.bias * (self.q_lora_rank + self.down_width + hidden)

    def parameters(self, hidden: int) -> int:
        """Return the learned parameters for a hidden size."""
        return self.matrix_parameters(hidden) + self.vector_parameters(hidden)

    @property
    def kv_elements_per_token(self) -> int:
        """Return the elements that one token adds to this layer's cache, the indexer's key too."""
        return self.kv_lora_rank + self.rope_dim + (self.index_dim if self.index_topk else 0)

    @property
    def kv_elements_read_per_token(self) -> int:
        """Return the cached elements that a query reads for each token that it attends to.

        The indexer reads `index_dim` further elements of every earlier token.
        """
        return self.kv_lora_rank + self.rope_dim

    @property
    def state_elements(self) -> int:
        """Return the elements of constant state of one sequence: attention has none."""
        return 0


@dataclass(frozen=True, slots=True)
class Mamba:
    """Mamba-2 mixer: a state of constant size instead of a growing cache (arXiv 2405.21060).

    Attributes:
        heads: State heads, each of `head_dim` channels.
        state: State elements of one channel.
        groups: Groups that share B and C.
        conv: Taps of the causal convolution.
        bias: Biases on the two projections.
    """

    heads: int
    head_dim: int
    state: int
    groups: int
    conv: int
    bias: bool = False
    conv_bias: bool = True

    @property
    def inner(self) -> int:
        """Return the inner width."""
        return self.heads * self.head_dim

    @property
    def conv_width(self) -> int:
        """Return the channels of the convolution: x, B and C."""
        return self.inner + 2 * self.groups * self.state

    @property
    def in_width(self) -> int:
        """Return the width of the input projection: z, x, B, C and dt."""
        return self.inner + self.conv_width + self.heads

    def matrix_parameters(self, hidden: int) -> int:
        """Return the elements of the two projections for a hidden size."""
        return hidden * (self.in_width + self.inner)

    def vector_parameters(self, hidden: int) -> int:
        """Return the elements of taps, biases, A, D, dt bias and the gated norm."""
        conv = self.conv_width * (self.conv + self.conv_bias)
        return conv + 3 * self.heads + self.inner + self.bias * (self.in_width + hidden)

    def parameters(self, hidden: int) -> int:
        """Return the learned parameters for a hidden size."""
        return self.matrix_parameters(hidden) + self.vector_parameters(hidden)

    @property
    def kv_elements_per_token(self) -> int:
        """Return the elements that one token adds to a cache: none."""
        return 0

    @property
    def ssm_elements(self) -> int:
        """Return the elements of the recurrent state of one sequence in one layer."""
        return self.heads * self.head_dim * self.state

    @property
    def state_elements(self) -> int:
        """Return the elements of state of one sequence in one layer: recurrence and taps."""
        return self.ssm_elements + self.conv_width * (self.conv - 1)


@dataclass(frozen=True, slots=True)
class ShortConv:
    """Gated short convolution of LFM2: input projection to 3 x width, taps, output projection."""

    width: int
    conv: int
    bias: bool = False

    def matrix_parameters(self, hidden: int) -> int:
        """Return the elements of the two projections for a hidden size."""
        return hidden * 3 * self.width + self.width * hidden

    def vector_parameters(self, hidden: int) -> int:
        """Return the elements of taps and biases for a hidden size."""
        return self.width * self.conv + self.bias * (4 * self.width + hidden)

    def parameters(self, hidden: int) -> int:
        """Return the learned parameters for a hidden size."""
        return self.matrix_parameters(hidden) + self.vector_parameters(hidden)

    @property
    def kv_elements_per_token(self) -> int:
        """Return the elements that one token adds to a cache: none."""
        return 0

    @property
    def state_elements(self) -> int:
        """Return the elements of state of one sequence in one layer."""
        return self.width * (self.conv - 1)


Mixer = Attention | LatentAttention | Mamba | ShortConv
