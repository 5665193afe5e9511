"""Files of repositories on the Hugging Face hub: names, downloads, uploads; knows no table, no model."""

from sere.hub.fetch import fetch_file, read_remote
from sere.hub.names import Repository, parse_repository
from sere.hub.publish import Published, publish_files

__all__ = ["Published", "Repository", "fetch_file", "parse_repository", "publish_files", "read_remote"]
