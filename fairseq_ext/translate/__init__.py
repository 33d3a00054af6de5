"""Translation of text with a trained model: ``fairseq-ext translate`` and :class:`fairseq_ext.Translator`.

fairseq is loaded with :mod:`~fairseq_ext.translate.translator`, not before.
"""
