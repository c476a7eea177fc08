"""Data: from sources (files, hub, the Primer) to conversations, a token store and batches of rows."""
