"""A language model that illustrates its own answers: tools, reward, training and evaluation of LLM-I."""
__version__ = "0.1.0"
