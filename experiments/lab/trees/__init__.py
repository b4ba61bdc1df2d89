"""Trees of real documents: tokens with their paths, for the encodings in `stackjax.position` that read them.

Reading order: `reading` (tokens aligned with a text, and their paths), `grammar` (by tree-sitter, from the whole
document: for encoders), `prefix` (by a pushdown scan, each path known from what came before: for decoders), `corpus`
(many documents, split, cached on disk, and batches that are pure functions of a seed and a step).
"""
