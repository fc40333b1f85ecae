"""A model as it lies on disk: opened without trust, edited lazily, written as GGUF or as a Hugging Face
folder.

``arch/`` has one file per ``model_type``, ``formats/`` one per kind of file.
"""
