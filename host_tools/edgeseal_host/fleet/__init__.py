"""The fleet server and its client: one registry, one directory of public files, two online signing keys.

It can withhold, delay and choose among what the publishers signed; it can never make a device run anything else.
"""
