"""smallchat: six notebooks that turn a small base language model into a chat model that you can measure."""

__version__ = "0.1.0"
