"""One iteration of a model as an OpTable: embedding, layers in pipeline stages, head.

Distinct layers are lowered once for each stage that they occur in; `order` repeats them. What is
lowered is the work of one representative device: its share of heads, columns, vocabulary and
experts, over the tokens of its replica, in all pipeline stages (the `stage` column tells which).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opbyte.core.errors import WorkloadError
from opbyte.core.ops import OpTable, OpTableBuilder
from opbyte.core.parallel import Parallel
from opbyte.workloads.attention_ops import attention, cross_attention
from opbyte.workloads.ffn_ops import dense_ffn, moe_ffn
from opbyte.workloads.latent_ops import latent_attention
from opbyte.workloads.mamba_ops import mamba, short_conv
from opbyte.workloads.mixers import Attention, LatentAttention, Mamba, Mixer
from opbyte.workloads.model import DenseFfn, Layer, Model, MoeFfn
from opbyte.workloads.numeric import share
from opbyte.workloads.routing import Routing
from opbyte.workloads.rows import VECTOR_FLOPS, Rows, Sizes
from opbyte.workloads.spans import Segment, Step, tokens_of


def stages_of(layers: int, parallel: Parallel, name: str) -> list[int]:
    """Return the pipeline stage of each layer: contiguous, sizes differing by at most one.

    Raises:
        WorkloadError: If there are more stages than layers.
    """
    if parallel.pp > layers:
        raise WorkloadError(
            f"{name}: pp={parallel.pp} stages for {layers} layers: a stage would be empty. "
            f"Use pp <= {layers}"
        )
    return [i * parallel.pp // layers for i in range(layers)]


def lower_step(
    model: Model, step: Step, parallel: Parallel, routing: Routing | None = None
) -> OpTable:
    """Return one iteration of a model on one representative device.

    Raises:
        WorkloadError: If the model can not be split so, or needs an encoder's input that the step
            does not have.
    """
    return _Lowering(model, step, parallel, routing or Routing()).table()


@dataclass(slots=True)
class _Lowering:
    model: Model
    step: Step
    parallel: Parallel
    routing: Routing

    def table(self) -> OpTable:
        """Return the finished table."""
        model, parallel = self.model, self.parallel
        run = (*model.encoder, *model.order)
        stages = stages_of(len(run), parallel, model.name)
        builder = OpTableBuilder()
        sizes = Sizes.of(model)
        built: dict[tuple[int, int, bool], int] = {}
        if self.step.encoder:
            self._embedding(builder, sizes, "encoder.embed", 0, self.step.encoder)
        first = stages[len(model.encoder)]
        if not model.encoder:
            self._embedding(builder, sizes, "embed", 0, self.step.segments)
        for position, (index, stage) in enumerate(zip(run, stages, strict=True)):
            encoding = position < len(model.encoder)
            if encoding and not self.step.encoder:
                continue
            if model.encoder and position == len(model.encoder):
                self._between(builder, sizes, first)
            key = (index, stage, encoding)
            if key not in built:
                built[key] = len(builder.blocks)
                self._layer(builder, sizes, index, stage, encoding)
            builder.order.append(built[key])
            if position + 1 < len(run) and stages[position + 1] != stage:
                self._send(builder, sizes, stage, encoding)
        self._head(builder, sizes, parallel.pp - 1)
        return builder.build()

    def _rows(
        self,
        builder: OpTableBuilder,
        sizes: Sizes,
        name: str,
        stage: int,
        segments: tuple[Segment, ...],
    ) -> Rows:
        """Open a block and return its rows."""
        with builder.block(name, stage) as block:
            word = segments[0].phase if segments is self.step.encoder else self.step.word
            return Rows(
                block, self.model, sizes, self.parallel, self.routing,
                segments, tokens_of(segments), (word, "embedding"),
            )  # fmt: skip

    def _embedding(
        self,
        builder: OpTableBuilder,
        sizes: Sizes,
        name: str,
        stage: int,
        segments: tuple[Segment, ...],
    ) -> None:
        """Add the look-up of token vectors: one row of the table for each token."""
        model, rows = self.model, self._rows(builder, sizes, name, stage, segments)
        builder.order.append(rows.block.index)
        width = model.embedding_dim or model.hidden
        read = rows.tokens * (width / self.parallel.tp * sizes.stored["head"])
        last = rows.block.add(
            "embedding", "embedding", dtype=model.precision.activation, labels=rows.words,
            flops=0.0, weight=read, out_bytes=rows.tokens * (width * sizes.activation),
        )  # fmt: skip
        last = rows.all_reduce("embedding_all_reduce", last)
        if width != model.hidden:
            last = rows.gemm("embedding_in", (last,), model.hidden, width, "ffn")
        if model.position_embeddings:
            elements = rows.tokens * model.hidden
            last = rows.block.add(
                "position", "embedding", dtype=model.precision.activation, inputs=(last,),
                labels=(*rows.words, "vector"), flops=VECTOR_FLOPS["add"] * elements,
                weight=elements * sizes.stored["head"], out_bytes=elements * sizes.activation,
            )  # fmt: skip
        for i in range(model.embedding_norms):
            last = rows.norm(f"embedding_norm{i or ''}", (last,), bias=model.norm_bias)
        if model.per_layer_width:
            self._per_layer_inputs(rows, last)

    def _per_layer_inputs(self, rows: Rows, source: int) -> None:
        """Add the per-layer embeddings: one row of their table, and a projection of the hidden."""
        model, sizes = rows.model, rows.sizes
        columns = model.per_layer_width * len(model.order)
        elements = rows.tokens * columns
        gathered = rows.block.add(
            "per_layer_embedding", "embedding", dtype=model.precision.activation,
            labels=rows.words, flops=0.0, weight=elements * sizes.stored["head"],
            out_bytes=elements * sizes.activation,
        )  # fmt: skip
        projected = rows.gemm("per_layer_in", (source,), columns, model.hidden, "ffn")
        rows.vector(
            "per_layer_norm", "norm", (projected, gathered),
            (VECTOR_FLOPS["norm"] + VECTOR_FLOPS["add"]) * elements, elements, groups=rows.tokens,
            vectors=model.per_layer_width,
        )  # fmt: skip

    def _between(self, builder: OpTableBuilder, sizes: Sizes, stage: int) -> None:
        """Add the encoder's last norm, and the decoder's embedding."""
        if self.step.encoder and self.model.final_norms > 1:
            rows = self._rows(builder, sizes, "encoder.norm", stage, self.step.encoder)
            builder.order.append(rows.block.index)
            rows.norm("encoder_norm", (), bias=self.model.norm_bias, in_bytes=rows.hidden_bytes())
        self._embedding(builder, sizes, "embed", stage, self.step.segments)

    def _send(self, builder: OpTableBuilder, sizes: Sizes, stage: int, encoding: bool) -> None:
        """Add what a stage hands to the next: hidden vectors, and the encoder's output beside."""
        segments = self.step.encoder if encoding else self.step.segments
        rows = self._rows(builder, sizes, f"send.{stage}", stage, segments)
        builder.order.append(rows.block.index)
        payload = rows.hidden_bytes()
        if self.step.encoder and not encoding:
            payload = payload + rows.hidden_bytes(tokens_of(self.step.encoder))
        rows.words = (rows.words[0],)
        rows.block.add(
            "send", "send", dtype=self.model.precision.activation,
            labels=(*rows.words, "collective"), flops=0.0, payload=payload, participants=2,
            in_bytes=payload, out_bytes=payload,
        )  # fmt: skip

    def _layer(
        self, builder: OpTableBuilder, sizes: Sizes, index: int, stage: int, encoding: bool
    ) -> None:
        layer = self.model.layers[index]
        segments = self.step.encoder if encoding else self.step.segments
        name = _block_name(layer, encoding)
        if self.parallel.pp > 1:
            name = f"{name}@{stage}"
        if name in builder.blocks:
            name = f"{name}.{index}"
        rows = self._rows(builder, sizes, name, stage, segments)
        lower_layer(rows, layer)

    def _head(self, builder: OpTableBuilder, sizes: Sizes, stage: int) -> None:
        """Add the last norm and the logits of the positions that need them."""
        model, step = self.model, self.step
        rows = self._rows(builder, sizes, "head", stage, step.segments)
        builder.order.append(rows.block.index)
        rows.words = (rows.words[0], "head")
        logits = step.logits
        if logits is None:
            logits = sum((s.sequences for s in step.segments[1:]), step.segments[0].sequences)
        rows.tokens = logits
        width = model.embedding_dim or model.hidden
        inputs: Sequence[int] = ()
        norms = model.final_norms - (1 if model.encoder else 0)
        start = rows.hidden_bytes()
        for i in range(norms):
            given = 0.0 if inputs else start
            row = rows.norm(f"final_norm{i or ''}", inputs, bias=model.norm_bias, in_bytes=given)
            inputs = (row,)
        if width != model.hidden:
            given = 0.0 if inputs else start
            inputs = (
                rows.gemm("embedding_out", inputs, width, model.hidden, "ffn", in_bytes=given),
            )
        vocab = share(model.vocab, self.parallel.tp)
        row = rows.gemm(
            "lm_head", inputs, vocab, width, "head",
            vectors=vocab * model.head_bias, in_bytes=0.0 if inputs else start,
        )  # fmt: skip
        if self.parallel.tp > 1:
            payload = logits * (vocab * self.parallel.tp * sizes.activation)
            rows.collective("logits_all_gather", "all_gather", (row,), payload, self.parallel.tp)


def _block_name(layer: Layer, encoding: bool) -> str:
    mixer = layer.mixer
    if isinstance(mixer, Attention):
        word = "chunked" if mixer.chunk else "sliding" if mixer.window else "full"
        word = "cross" if mixer.cross else word
    elif mixer is None:
        word = "ffn"
    else:
        word = {LatentAttention: "latent", Mamba: "mamba"}.get(type(mixer), "conv")
    part = ".moe" if isinstance(layer.ffn, MoeFfn) else ""
    return f"{'encoder' if encoding else 'layer'}.{word}{part}"


def lower_layer(rows: Rows, layer: Layer) -> int:
    """Add all rows of one layer; return its last.

    Pre-norms come before mixer, cross attention and feed-forward part, in this order, as far as
    `layer.norms` goes; what is left are post-norms, before the residual sums.
    """
    parts = [p for p in ("mixer", "cross", "ffn") if getattr(layer, p) is not None]
    before = parts[: layer.norms]
    after = [parts[i % len(parts)] for i in range(layer.norms - len(before))]
    if layer.parallel and layer.mixer is not None and layer.ffn is not None:
        last = _parallel_layer(rows, layer, before, after)
    else:
        last = _serial_layer(rows, layer, parts, before, after)
    if layer.per_layer_input:
        last = _per_layer_gate(rows, layer.per_layer_input, last)
    return last


def _serial_layer(
    rows: Rows, layer: Layer, parts: list[str], before: list[str], after: list[str]
) -> int:
    """Add a layer whose parts run one after the other, each around a residual sum."""
    last: int | None = None
    for part in parts:
        rows.region("ffn" if part == "ffn" else "mixer")
        prefix = "" if part == "mixer" else f"{part}_"
        given = rows.hidden_bytes()
        residual = () if last is None else (last,)
        x = _pre_norm(rows, layer, f"{prefix}norm", part in before, residual)
        row = rows.all_reduce(f"{prefix}all_reduce", _part(rows, layer, part, x))
        row = _post_norms(rows, layer, prefix, after.count(part), row)
        outer = given if last is None else 0.0
        last = rows.add(f"{prefix}add", (row, *residual), in_bytes=outer)
    assert last is not None, "a layer has at least one part"
    return last


def _pre_norm(rows: Rows, layer: Layer, name: str, present: bool, inputs: tuple[int, ...]) -> int:
    """Return the row that a part reads: its norm, or without one a row that costs nothing."""
    given = 0.0 if inputs else rows.hidden_bytes()
    if present:
        return rows.norm(name, inputs, bias=layer.norm_bias, in_bytes=given)
    if inputs:
        return inputs[0]
    return rows.vector(
        f"{name}_input", "elementwise", (), 0.0, rows.tokens * rows.model.hidden, in_bytes=0.0
    )


def _post_norms(rows: Rows, layer: Layer, prefix: str, count: int, row: int) -> int:
    for i in range(count):
        row = rows.norm(f"{prefix}post_norm{i or ''}", (row,), bias=layer.norm_bias)
    return row


def _parallel_layer(rows: Rows, layer: Layer, before: list[str], after: list[str]) -> int:
    """Add a layer whose mixer and FFN read the same input: one collective for both."""
    rows.region("mixer")
    given = rows.hidden_bytes()
    x = _pre_norm(rows, layer, "norm", "mixer" in before, ())
    mixed = _part(rows, layer, "mixer", x)
    rows.region("ffn")
    if "ffn" in before:
        x = rows.norm("ffn_norm", (), bias=layer.norm_bias, in_bytes=given)
    forward = _part(rows, layer, "ffn", x)
    row = rows.all_reduce("all_reduce", rows.add("parallel_add", (mixed, forward)))
    row = _post_norms(rows, layer, "", len(after), row)
    return rows.add("add", (row,), in_bytes=given)


def _part(rows: Rows, layer: Layer, part: str, x: int) -> int:
    """Add one part of a layer; return the row of its result."""
    if part == "mixer":
        assert layer.mixer is not None
        return lower_mixer(rows, layer.mixer, x)
    if part == "cross":
        assert layer.cross is not None
        return cross_attention(rows, layer.cross, x)
    if isinstance(layer.ffn, MoeFfn):
        return moe_ffn(rows, layer.ffn, x)
    assert isinstance(layer.ffn, DenseFfn)
    return dense_ffn(rows, layer.ffn, x)


def lower_mixer(rows: Rows, mixer: Mixer, x: int) -> int:
    """Add the rows of a mixer; return its output projection."""
    if isinstance(mixer, Attention):
        return attention(rows, mixer, x)
    if isinstance(mixer, LatentAttention):
        return latent_attention(rows, mixer, x)
    if isinstance(mixer, Mamba):
        return mamba(rows, mixer, x)
    return short_conv(rows, mixer, x)


def _per_layer_gate(rows: Rows, width: int, source: int) -> int:
    """Add the gated per-layer embedding at a layer's end (Gemma 4's small models)."""
    hidden = rows.model.hidden
    gate = rows.gemm("per_layer_gate", (source,), width, hidden, "ffn")
    elements = rows.tokens * width
    gated = rows.vector(
        "per_layer_activation", "activation", (gate,),
        (VECTOR_FLOPS["activation"] + 1.0) * elements, elements,
        in_bytes=elements * rows.sizes.activation,
    )  # fmt: skip
    up = rows.gemm("per_layer_up", (gated,), hidden, width, "ffn")
    return rows.add("per_layer_add", (up, source))
