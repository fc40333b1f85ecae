"""report.html: one self-contained page that says what was made, whether it fits, and how that is known.

Tables and charts take records and return markup; nothing is measured here.
"""
