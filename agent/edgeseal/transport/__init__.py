"""How bytes travel: X1 messages and objects over HTTP, objects from removable media. Nothing that comes is trusted."""
