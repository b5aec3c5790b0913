"""What every server stands on: who may connect, with which token, how bodies are read and answers sent."""
