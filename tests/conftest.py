"""Makes the helpers beside it importable from every test folder (pytest puts this folder on the path)."""
