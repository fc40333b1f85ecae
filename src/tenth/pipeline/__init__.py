"""The main flow: from a model and a budget to a file that was seen to fit.

Each stage is kept in the work folder by the name of its inputs, so that a killed run resumes.
"""
