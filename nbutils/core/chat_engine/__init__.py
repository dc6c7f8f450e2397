"""The engine of a chat: what the model reads, with caches kept across turns, and how it writes."""
