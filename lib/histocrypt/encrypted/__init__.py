"""Encrypted inference between two parties: a key owner who sees the tissue, an evaluator who sees ciphertexts only."""
