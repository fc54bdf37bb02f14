"""ONNX Runtime's own graph optimisers by name: what a recipe may switch off, offline or in the session.

ONNX Runtime ignores a name that it does not know, and an ablation of nothing would look like a result; so names are
checked here. `OPTIMIZERS` are those that 1.31 registers for the CPU and CUDA providers (its verbose log names each
as it is applied), `RULES` what its two rule-based optimisers hold (core/optimizer/graph_transformer_utils.cc).
"""

from __future__ import annotations

from collections.abc import Iterable

from llama_bench.errors import InputError, nearest

OPTIMIZERS = (
    "AttentionFusion",
    "BiasDropoutFusion",
    "BiasGeluFusion",
    "BiasSkipLayerNormFusion",
    "BiasSoftmaxFusion",
    "CommonSubexpressionElimination",
    "ConstantFolding",
    "ConstantSharing",
    "ConvActivationFusion",
    "ConvAddActivationFusion",
    "DoubleQDQPairsRemover",
    "DynamicQuantizeMatMulFusion",
    "EmbedLayerNormFusion",
    "EnsureUniqueDQForNodeUnit",
    "FastGeluFusion",
    "FreeDimensionOverrideTransformer",
    "FuseFp16InitializerToFp32NodeTransformer",
    "GatherSliceToSplitFusion",
    "GatherToSliceFusion",
    "GeluFusionL1",
    "GeluFusionL2",
    "GemmActivationFusion",
    "GroupQueryAttentionFusion",
    "GroupQueryAttentionPreNormFusion",
    "LayerNormFusionL1",
    "LayerNormFusionL2",
    "MatMulActivationFusion",
    "MatMulAddFusion",
    "MatMulIntegerToFloatFusion",
    "MatMulNBitsFusion",
    "MatMulScaleFusion",
    "MatmulTransposeFusion",
    "NchwcTransformer",
    "NhwcTransformer",
    "QDQFinalCleanupTransformer",
    "QDQPropagationTransformer",
    "QDQS8ToU8Transformer",
    "QDQSelectorActionTransformer",
    "QuickGeluFusion",
    "ReshapeFusion",
    "SimplifiedLayerNormFusion",
    "SkipLayerNormFusion",
    "SliceConcatToSpaceToDepthFusion",
    "TransposeOptimizer",
    "TransposeOptimizer_CPUExecutionProvider",
    "WeightBiasQuantization",
    "WhereDummyDq",
)
"""Optimisers, by the name under which ONNX Runtime registers them."""

RULES = (
    "Level1_RuleBasedTransformer",
    "Level2_RuleBasedTransformer",
    "CastChainElimination",
    "CastElimination",
    "ClipQuantRewrite",
    "ConvAddFusion",
    "ConvBNFusion",
    "ConvMulFusion",
    "DivMulFusion",
    "EliminateDropout",
    "EliminateIdentity",
    "EliminateSlice",
    "ExpandElimination",
    "FuseReluClip",
    "GemmSumFusion",
    "GemmTransposeFusion",
    "LabelEncoderFusion",
    "MatMul_BatchNormalization_Fusion",
    "NoopElimination",
    "NotWhereFusion",
    "Pad_Fusion",
    "PreShapeNodeElimination",
    "ReluQuantRewrite",
    "UnsqueezeElimination",
)
"""The two optimisers that apply rules to single nodes, and the rules, which can be switched off one by one."""


def check_optimizers(names: Iterable[str]) -> tuple[str, ...]:
    """Return `names` sorted, each once; raises InputError for one that ONNX Runtime would silently ignore."""
    known = (*OPTIMIZERS, *RULES)
    for name in names:
        if name not in known:
            raise InputError(f"ONNX Runtime has no optimiser {name!r} to disable{nearest(name, known)}")
    return tuple(sorted(set(names)))
