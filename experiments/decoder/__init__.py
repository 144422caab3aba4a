"""What a decoder keeps from token to token: formats of its keys and values."""
