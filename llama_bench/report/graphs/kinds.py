"""Kinds of operators and marks of a difference: the letter, the colour and the words for each."""

from __future__ import annotations

from dataclasses import dataclass

CARD = "#fdfdfd"
"""The paper of boxes, on light and on dark paper alike.

A page turns the colours of charts.py into others on dark paper: what lies on a box must be none of them.
"""

BLUE, VERMILLION, GREEN, GREY, BROWN = "#00689f", "#a84800", "#007556", "#6b737c", "#8a5a00"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of operator: what the legend calls it, its letter and the colour behind the letter."""

    words: str
    letter: str
    colour: str


KINDS: dict[str, Kind] = {
    "product": Kind("matrix product", "M", "#56b4e9"),
    "attention": Kind("attention", "A", "#e69f00"),
    "norm": Kind("normalisation", "N", "#3dbb98"),
    "elementwise": Kind("elementwise, reduction", "E", "#f0e442"),
    "activation": Kind("activation", "F", "#ef8a4b"),
    "layout": Kind("layout, copy", "L", "#dd9fc1"),
    "shape": Kind("shape, constant", "S", "#c4cad1"),
    "quantisation": Kind("quantisation", "Q", "#7f9fe0"),
    "other": Kind("other", "O", "#f2f2f2"),
}
"""Okabe & Ito's palette, the dark ones lightened: dark letters are read on all of them, on light and on dark paper."""

OPERATORS: dict[str, str] = {
    "product": """MatMul Gemm Einsum Conv MatMulInteger QLinearMatMul MatMulNBits MatMulIntegerToFloat FusedMatMul
        DynamicQuantizeMatMul FusedGemm QGemm MatMulBnb4 TransposeMatMul GemmFastGelu""",
    "attention": """Attention MultiHeadAttention GroupQueryAttention RotaryEmbedding PackedAttention QAttention
        DecoderMaskedMultiHeadAttention DecoderMaskedSelfAttention SparseAttention PagedAttention""",
    "norm": """LayerNormalization SimplifiedLayerNormalization SkipLayerNormalization SkipSimplifiedLayerNormalization
        RMSNormalization BatchNormalization InstanceNormalization GroupNormalization LpNormalization
        EmbedLayerNormalization""",
    "elementwise": """Add Sub Mul Div Pow Sqrt Neg Reciprocal Cos Sin Exp Log Abs Min Max Clip Where Equal Greater
        GreaterOrEqual Less LessOrEqual And Or Not IsNaN Mod Floor Ceil Round Erf Sum Mean ReduceMean ReduceSum
        ReduceMax ReduceMin ReduceProd ReduceSumSquare ReduceL2 CumSum ArgMax TopK BiasAdd""",
    "activation": """Sigmoid Softmax LogSoftmax Silu Swish Relu Gelu FastGelu QuickGelu BiasGelu Tanh Softplus
        HardSigmoid HardSwish LeakyRelu Elu""",
    "layout": """Transpose Reshape Concat Split Slice Gather GatherND GatherElements ScatterND ScatterElements Expand
        Squeeze Unsqueeze Flatten Tile Pad Identity Cast CastLike Trilu""",
    "shape": "Shape Size Constant ConstantOfShape Range NonZero",
    "quantisation": "QuantizeLinear DequantizeLinear DynamicQuantizeLinear GatherBlockQuantized DequantizeBFP",
}
"""Kind → its operators; what stands nowhere is `other`."""


def kinds_of_operators() -> dict[str, str]:
    """Return operator → key of :data:`KINDS`."""
    return {op: kind for kind, ops in OPERATORS.items() for op in ops.split()}


@dataclass(frozen=True, slots=True)
class Mark:
    """What became of a node: the words of the legend, its sign, its colour and tint, and how its frame is drawn."""

    words: str
    sign: str
    colour: str
    tint: str
    dashed: bool = False


MARKS: dict[str, Mark] = {
    "same": Mark("as it was", "", GREY, "#eef0f2"),
    "elsewhere": Mark("part of another rewrite", "…", GREY, CARD, dashed=True),
    "removed": Mark("removed", "−", VERMILLION, "#fbe3d3", dashed=True),
    "replaced": Mark("replaced by +n", "−n", BLUE, "#d3e7f5", dashed=True),
    "fused": Mark("stands for −n", "+n", BLUE, "#d3e7f5"),
    "resized": Mark("reads constants of other sizes", "~", BROWN, "#f8ecc9"),
    "added": Mark("added", "+", GREEN, "#d0efe4"),
}
"""A sign and a dashed or bold frame go with each colour."""
