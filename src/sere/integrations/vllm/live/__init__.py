"""The live page: what it shows of an engine, the last minutes of it, and the page itself."""
